package topic

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// naive is the standard's text, level by level, and nothing clever.
func naive(filter, name []string) bool {
	switch {
	case len(filter) == 0:
		return len(name) == 0
	case filter[0] == "#":
		return true
	case len(name) == 0:
		return false
	}
	return (filter[0] == "+" || filter[0] == name[0]) && naive(filter[1:], name[1:])
}

func reference(filter, name string) bool {
	if name[0] == '$' && filter[0] != '$' {
		return false
	}
	return naive(strings.Split(filter, "/"), strings.Split(name, "/"))
}

func pick(r *rand.Rand, words []string) string { return words[r.IntN(len(words))] }

func randomName(r *rand.Rand) string {
	levels := make([]string, 1+r.IntN(4))
	for i := range levels {
		levels[i] = pick(r, []string{"a", "b", "", "$s", "ab"})
	}
	if s := strings.Join(levels, "/"); s != "" {
		return s
	}
	return "a"
}

func randomFilter(r *rand.Rand) string {
	levels := make([]string, 1+r.IntN(4))
	for i := range levels {
		levels[i] = pick(r, []string{"a", "b", "", "$s", "+", "+", "ab"})
	}
	if r.IntN(3) == 0 {
		levels[len(levels)-1] = "#"
	}
	if s := strings.Join(levels, "/"); s != "" {
		return s
	}
	return "+"
}

func TestMatchAgainstReference(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	matched := 0
	for range 10_000 {
		f, n := randomFilter(r), randomName(r)
		if err := CheckFilter(f); err != nil {
			t.Fatal(err)
		}
		if err := CheckName(n); err != nil {
			t.Fatal(err)
		}
		want := reference(f, n)
		if got := Match(f, n); got != want {
			t.Fatalf("Match(%q, %q) = %v", f, n, got)
		}
		if want {
			matched++
		}
	}
	if matched < 500 {
		t.Errorf("only %d of the pairs match: they prove little", matched)
	}
}

func TestSetAgainstReference(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 100 {
		var s Set[int]
		filters := make([]string, r.IntN(200))
		for i := range filters {
			filters[i] = randomFilter(r)
			s.Add(filters[i], i)
		}
		for range 100 {
			name := randomName(r)
			var want []int
			for i, f := range filters {
				if reference(f, name) {
					want = append(want, i)
				}
			}
			got := s.Match(name, nil)
			slices.Sort(got)
			if !slices.Equal(got, want) || s.Len() != len(filters) {
				t.Fatalf("%q: %v, want %v of %q", name, got, want, filters)
			}
		}
	}
}

// every is all names of a few words and levels: what random filters can tell apart.
func every() []string {
	words := []string{"a", "b", "", "$s", "ab", "other"}
	names := slices.Clone(words)
	for from := 0; len(names) < 8000; {
		for _, head := range names[from:] {
			from++
			for _, w := range words {
				names = append(names, head+"/"+w)
			}
		}
	}
	return slices.DeleteFunc(names, func(s string) bool { return s == "" })
}

func TestCoversAndOverlap(t *testing.T) {
	names := every()
	r := rand.New(rand.NewPCG(5, 6))
	known := map[string][]bool{} // by filter: which of names it matches
	matches := func(f string) []bool {
		if known[f] == nil {
			for _, n := range names {
				known[f] = append(known[f], reference(f, n))
			}
		}
		return known[f]
	}
	var covers, overlaps int
	for range 2000 {
		a, b := randomFilter(r), randomFilter(r)
		inA, inB := matches(a), matches(b)
		wantCovers, wantOverlap := true, false
		for i := range names {
			wantCovers = wantCovers && (inA[i] || !inB[i])
			wantOverlap = wantOverlap || inA[i] && inB[i]
		}
		if got := Covers(a, b); got != wantCovers {
			t.Fatalf("Covers(%q, %q) = %v", a, b, got)
		}
		if got := Overlap(a, b); got != wantOverlap {
			t.Fatalf("Overlap(%q, %q) = %v", a, b, got)
		}
		if wantCovers {
			covers++
		}
		if wantOverlap {
			overlaps++
		}
	}
	if covers < 20 || overlaps < 100 {
		t.Errorf("%d covered, %d overlapping: they prove little", covers, overlaps)
	}
}

func TestDisjoint(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	for range 2000 {
		filters := make([]string, r.IntN(8))
		for i := range filters {
			filters[i] = randomFilter(r)
		}
		filters = slices.DeleteFunc(filters, Reserved)
		out := Disjoint(filters)
		for i, o := range out {
			if err := CheckFilter(o); err != nil {
				t.Fatalf("%q of %q: %v", out, filters, err)
			}
			for _, other := range out[:i] {
				if Overlap(o, other) {
					t.Fatalf("%q of %q overlap", out, filters)
				}
			}
		}
		for _, f := range filters {
			if !slices.ContainsFunc(out, func(o string) bool { return Covers(o, f) }) {
				t.Fatalf("%q of %q do not cover %q", out, filters, f)
			}
		}
	}
	for _, c := range []struct{ a, b, want string }{
		{"a/b", "a/c", "a/+"}, {"a/+", "+/b", "+/+"}, {"a/#", "a/b/c", "a/#"}, {"a/b", "a/b/c", "a/b/#"}, {"+/b/#", "a/+/c", "+/+/#"},
	} {
		if got := Join(c.a, c.b); got != c.want {
			t.Errorf("Join(%q, %q) = %q", c.a, c.b, got)
		}
	}
}

func TestCheck(t *testing.T) {
	for s, want := range map[string]string{
		"": "empty", "a\x00b": "NUL", "a\xff": "UTF-8", "a/+": "filters", "#": "filters", "a#": "filters",
		strings.Repeat("x", MaxLength+1): "at most 65535", strings.Repeat("/", MaxLevels): "levels",
	} {
		if err := CheckName(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("name %.20q: %v, want %q", s, err, want)
		}
	}
	for s, want := range map[string]string{
		"": "empty", "#/a": "last level", "a/#/": "last level", "a+": "whole levels", "a/b#": "whole levels", "++": "whole levels",
		"a/\x00": "NUL", "\xff/+": "UTF-8",
	} {
		if err := CheckFilter(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("filter %.20q: %v, want %q", s, err, want)
		}
	}
	for _, s := range []string{"/", "a//b", " ", "$SYS/x", strings.Repeat("x", MaxLength)} {
		if err := CheckName(s); err != nil {
			t.Error(err)
		}
	}
	for _, s := range []string{"#", "+", "+/+/#", "/#", "a/+/b", "$SYS/#"} {
		if err := CheckFilter(s); err != nil {
			t.Error(err)
		}
	}
}

func TestRewrite(t *testing.T) {
	for _, c := range []struct{ filter, as, name, want string }{
		{"sensors/+/temp", "bob/{1}/temp", "sensors/kitchen/temp", "bob/kitchen/temp"},
		{"sensors/+/temp", "bob/{1}/temp", "sensors/kitchen/hum", ""},
		{"a/+/#", "{2}/x/{1}", "a/b/c/d", "c/d/x/b"},
		{"a/+/#", "{2}/x/{1}", "a/b", "x/b"},
		{"a/+/#", "{2}/x/{1}", "a/b/", "/x/b"},
		{"a/#", "bob/{1}", "a", "bob"},
		{"a/#", "bob/{1}", "a/", "bob/"},
		{"a/#", "bob/{1}", "a/x/y", "bob/x/y"},
		{"#", "bob/", "a/b", "bob/a/b"},
		{"#", "", "a/b", "a/b"},
		{"#", "bob/", "$SYS/x", ""},
		{"a/#", "{1}", "a/$SYS/x", ""},
		{"a/#", "{1}", "a", ""}, // nothing is left
		{"+/+", "{2}/{1}", "/b", "b/"},
		{"a/b", "c", "a/b", "c"},
		{"#", strings.Repeat("x", MaxLength-2) + "/", "ab", ""}, // too long
	} {
		r, err := NewRule(c.filter, c.as)
		if err != nil {
			t.Errorf("%q to %q: %v", c.filter, c.as, err)
			continue
		}
		if got, ok := r.Apply(c.name); ok != (c.want != "") || ok && got != c.want {
			t.Errorf("%q to %q: %q becomes %q, %v", c.filter, c.as, c.name, got, ok)
		}
	}
	for _, c := range []struct{ filter, as, want string }{
		{"a/#/b", "", "last level"},
		{"a/+", "b", "{1} is missing"},
		{"a/+", "b/{2}", "has 1 wildcards"},
		{"a/+", "b/{0}", "has 1 wildcards"},
		{"a/+", "b/{1}/{1}", "twice"},
		{"a/+", "b/x{1}", "level of its own"},
		{"a/+", "b/{01}", "level of its own"},
		{"a/+", "b/+", "wildcards are written as"},
		{"a/+", "{1}/", ""},
		{"a", "$SYS/", "begins with $"},
		{"a/+", "$x/{1}", "begins with $"},
	} {
		_, err := NewRule(c.filter, c.as)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%q to %q: %v, want %q", c.filter, c.as, err, c.want)
		}
	}
}

// Rewriting never makes two topics one: clears of retained messages depend on it.
func TestRewriteInjective(t *testing.T) {
	names := every()
	for _, c := range []struct{ filter, as string }{
		{"+/+/#", "x/{3}/{1}/{2}"}, {"#", "{1}"}, {"+/#", "{2}/{1}"}, {"a/#", "bob/"}, {"+/+", "{2}/y/{1}"},
	} {
		r, err := NewRule(c.filter, c.as)
		if err != nil {
			t.Fatal(err)
		}
		became := map[string]string{}
		for _, n := range names {
			if out, ok := r.Apply(n); ok {
				if other, taken := became[out]; taken {
					t.Fatalf("%q to %q: %q and %q both become %q", c.filter, c.as, n, other, out)
				}
				became[out] = n
			}
		}
		if len(became) < 20 {
			t.Errorf("%q: only %d names", c.filter, len(became))
		}
	}
}

func FuzzMatch(f *testing.F) {
	f.Add("a/+/#", "a/b/c")
	f.Add("#", "$SYS")
	f.Fuzz(func(t *testing.T, filter, name string) {
		if CheckFilter(filter) != nil || CheckName(name) != nil {
			return
		}
		want := reference(filter, name)
		var s Set[bool]
		s.Add(filter, true)
		if got := Match(filter, name); got != want || (len(s.Match(name, nil)) == 1) != want {
			t.Errorf("Match(%q, %q) = %v, the set says %v", filter, name, got, s.Match(name, nil))
		}
		if want && !Overlap(filter, name) || want != Covers(filter, name) {
			t.Errorf("%q and %q: overlap %v, covers %v", filter, name, Overlap(filter, name), Covers(filter, name))
		}
	})
}

func BenchmarkSet(b *testing.B) {
	r := rand.New(rand.NewPCG(7, 8))
	var s Set[int]
	for i := range 1000 {
		s.Add("site/"+string(rune('a'+r.IntN(26)))+"/"+string(rune('a'+r.IntN(26)))+"/#", i)
	}
	out := make([]int, 0, 16)
	for b.Loop() {
		out = s.Match("site/k/m/temperature/celsius", out[:0])
	}
}
