package s2s

import (
	"fmt"
	"strings"
	"testing"
)

// summary is Status without its times.
func summary(t *testing.T, s *Streams) string {
	t.Helper()
	var b strings.Builder
	for _, st := range s.Status() {
		fmt.Fprintf(&b, "%s %s %s %s\n", st.Dir, st.From, st.To, st.State)
		if st.Since.IsZero() == (st.State == StateOpen) || (st.Err == "") == (st.State == StateDown) {
			t.Errorf("the state does not fit the rest: %+v", st)
		}
	}
	return b.String()
}

func TestStatus(t *testing.T) {
	ca := openCA(t)
	g, s, gh, sh := couple(t, Config{CA: ca, Servers: []Server{{}}}, Config{CA: ca, Servers: []Server{{}}})
	if got := g.Status(); len(got) > 0 {
		t.Errorf("before anything was said: %+v", got)
	}
	if err := g.Send(t.Context(), "b.grid", "a.grid", []byte("<message id='1'/>")); err != nil {
		t.Fatal(err)
	}
	sh.received(t, "b.grid>a.grid <message id='1'/>")
	if err := s.Send(t.Context(), "a.grid", "b.grid", []byte("<message id='2'/>")); err != nil {
		t.Fatal(err)
	}
	gh.received(t, "a.grid>b.grid <message id='2'/>")
	if got := summary(t, g); got != "in a.grid b.grid open\nout b.grid a.grid open\n" {
		t.Errorf("both ways:\n%s", got)
	}
}

func TestStatusOfFailure(t *testing.T) {
	g, _, gh, _ := couple(t, Config{CA: openCA(t), Servers: []Server{{}}}, Config{CA: openCA(t), Servers: []Server{{}}})
	if err := g.Send(t.Context(), "b.grid", "a.grid", []byte("<message id='1'/>")); err != nil {
		t.Fatal(err)
	}
	gh.wait(t, func(_, failed []string) bool { return len(failed) == 1 })
	if got := summary(t, g); got != "out b.grid a.grid down\n" {
		t.Errorf("not trusted:\n%s", got)
	}
	if got := g.Status()[0].Err; !strings.Contains(got, "unknown authority") {
		t.Errorf("why: %q", got)
	}
}
