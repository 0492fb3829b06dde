package topic

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Rule says which names it is about, and what they become.
type Rule struct {
	filter string
	prefix string
	// parts are the levels of a template; nil for a prefix.
	parts []part
}

type part struct {
	text    string
	capture int // 1 for the first wildcard of the filter; 0: text
}

// NewRule makes a rule. Where as is
//
//   - empty, names stay as they are;
//   - a prefix, which ends in "/", it is put before them;
//   - else a template, in which {1} is what the first wildcard of the filter stands
//     for, {2} the second, and so on. Each is a level of its own, and each wildcard
//     has its place once, so that two names never become one. What # stands for may
//     be several levels, or none, which leaves no level.
func NewRule(filter, as string) (Rule, error) {
	if err := CheckFilter(filter); err != nil {
		return Rule{}, err
	}
	r := Rule{filter: filter}
	switch {
	case as == "":
		return r, nil
	case strings.HasSuffix(as, "/") && !strings.ContainsAny(as, "{}"):
		if err := CheckName(as); err != nil {
			return Rule{}, fmt.Errorf("prefix: %w", err)
		}
		r.prefix = as
	default:
		if err := r.template(as); err != nil {
			return Rule{}, fmt.Errorf("template %.80q: %w", as, err)
		}
	}
	if Reserved(as) {
		return Rule{}, fmt.Errorf("%.80q begins with $, which brokers keep for themselves", as)
	}
	return r, nil
}

func (r *Rule) template(as string) error {
	if err := CheckName(as); err != nil {
		return errors.New("is no topic; wildcards are written as {1}, {2}")
	}
	used := make([]bool, wildcards(r.filter))
	for rest, more := as, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		if !strings.ContainsAny(level, "{}") {
			r.parts = append(r.parts, part{text: level})
			continue
		}
		n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(level, "{"), "}"))
		switch {
		case err != nil || level != "{"+strconv.Itoa(n)+"}":
			return fmt.Errorf("level %.80q: write a wildcard as a level of its own, as in bob/{1}/temp", level)
		case n < 1 || n > len(used):
			return fmt.Errorf("%s: the filter %.80q has %d wildcards", level, r.filter, len(used))
		case used[n-1]:
			return fmt.Errorf("%s stands there twice", level)
		}
		used[n-1] = true
		r.parts = append(r.parts, part{capture: n})
	}
	for i, ok := range used {
		if !ok {
			return fmt.Errorf("{%d} is missing: different topics would become one", i+1)
		}
	}
	return nil
}

func wildcards(filter string) int { return strings.Count(filter, "+") + strings.Count(filter, "#") }

// Filter is what names the rule is about.
func (r *Rule) Filter() string { return r.filter }

// Apply returns what a name becomes, or false if the rule is not about it, or what it
// would become is no topic name or begins with $.
func (r *Rule) Apply(name string) (string, bool) {
	if !Match(r.filter, name) {
		return "", false
	}
	out := r.prefix + name
	if r.parts != nil {
		out = r.fill(captures(r.filter, name))
	}
	return out, !Reserved(out) && CheckName(out) == nil
}

// capture is what a wildcard stands for; none for a # that stands for no level.
type capture struct {
	text string
	none bool
}

func captures(filter, name string) (found []capture) {
	nameMore := true
	for rest, more := filter, true; more; {
		var f, n string
		f, rest, more = strings.Cut(rest, "/")
		if f == "#" {
			return append(found, capture{text: name, none: !nameMore})
		}
		n, name, nameMore = strings.Cut(name, "/")
		if f == "+" {
			found = append(found, capture{text: n})
		}
	}
	return found
}

func (r *Rule) fill(found []capture) string {
	var b strings.Builder
	first := true
	for _, p := range r.parts {
		text := p.text
		if p.capture > 0 {
			c := found[p.capture-1]
			if c.none {
				continue
			}
			text = c.text
		}
		if !first {
			b.WriteByte('/')
		}
		first = false
		b.WriteString(text)
	}
	return b.String()
}
