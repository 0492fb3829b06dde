package topic

import "strings"

// Set finds, among many filters, those that match a name: in the time of the levels
// of the name, not of the number of filters. The zero Set is empty. It may be read
// concurrently once nothing is added any more.
type Set[V any] struct {
	root node[V]
	size int
}

type node[V any] struct {
	next map[string]*node[V] // by level; "+" among them
	here []V                 // of filters that end at this level
	rest []V                 // of filters that go on with "#"
}

// Add adds a filter, which must be well formed. The same may be added more than once.
func (s *Set[V]) Add(filter string, v V) {
	n := &s.root
	s.size++
	for rest, more := filter, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		if level == "#" {
			n.rest = append(n.rest, v)
			return
		}
		child := n.next[level]
		if child == nil {
			if n.next == nil {
				n.next = map[string]*node[V]{}
			}
			child = &node[V]{}
			n.next[level] = child
		}
		n = child
	}
	n.here = append(n.here, v)
}

// Len is how many filters were added.
func (s *Set[V]) Len() int { return s.size }

// Match appends to out the values of all filters that match a name. A value comes as
// often as filters that it was added with match.
func (s *Set[V]) Match(name string, out []V) []V {
	return s.root.match(name, Reserved(name), out)
}

// match needs fixed where no wildcard may stand for the next level.
func (n *node[V]) match(name string, fixed bool, out []V) []V {
	if !fixed {
		out = append(out, n.rest...)
	}
	level, rest, more := strings.Cut(name, "/")
	out = n.next[level].step(rest, more, out)
	if !fixed {
		out = n.next["+"].step(rest, more, out)
	}
	return out
}

func (n *node[V]) step(rest string, more bool, out []V) []V {
	switch {
	case n == nil:
		return out
	case more:
		return n.match(rest, false, out)
	}
	return append(append(out, n.here...), n.rest...) // "a/#" matches "a"
}
