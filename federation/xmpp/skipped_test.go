package xmpp

import (
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/yggate/yggate/federation/xmpp/frame"
)

// What was skipped is settled once: when its sender is told, or at once if it must not
// be.
func TestSkippedIsSettled(t *testing.T) {
	for tag, bounces := range map[string]int{
		"<message from='x@a.grid' to='y@b.grid'>":                  1,
		"<iq type='result' from='x@a.grid' to='y@b.grid' id='1'/>": 0,
	} {
		synctest.Test(t, func(t *testing.T) {
			w, _ := newDurable(t, nil)
			var settled atomic.Int32
			skipped := &frame.Skipped{Tag: []byte(tag), Size: 1 << 20, Limit: &frame.Error{Condition: frame.PolicyViolation}}
			if err := w.adapter.Skipped(t.Context(), "a.grid", "b.grid", skipped, func() { settled.Add(1) }); err != nil {
				t.Fatal(err)
			}
			if n := int(settled.Load()); n != 1-bounces {
				t.Errorf("%s: settled %d times before the local server has its errors", tag, n)
			}
			stop := w.run(t)
			synctest.Wait()
			stop()
			if got := w.take(); len(got) != bounces || settled.Load() != 1 {
				t.Errorf("%s: settled %d times; local server got %q", tag, settled.Load(), got)
			}
		})
	}
	w, _ := newDurable(t, nil)
	err := w.adapter.Skipped(t.Context(), "a.grid", "b.grid", &frame.Skipped{Tag: []byte("<message from='x@c.grid' to='y@b.grid'>")}, func() { t.Error("settled") })
	if conditionOf(err) != "invalid-from" {
		t.Error(err)
	}
}
