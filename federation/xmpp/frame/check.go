package frame

import "sync"

var scanners = sync.Pool{New: func() any { return new(scanner) }}

// Check asks of what should be exactly one element all that a Reader asks of a
// stream: nothing may stand before or behind it, and it may use no prefix that
// it does not bind. Errors are *Error.
func Check(element []byte, lim Limits) error {
	s := scanners.Get().(*scanner)
	defer scanners.Put(s)
	s.reset()
	s.lim = lim.orDefault()
	switch {
	case len(element) == 0 || element[0] != '<':
		return refuse(BadFormat, "text before the element")
	case len(element) > s.lim.Stanza:
		return refuse(PolicyViolation, "an element is larger than %d bytes", s.lim.Stanza)
	}
	n, err := s.scan(element)
	switch {
	case err != nil:
		return err
	case n == 0:
		return refuse(NotWellFormed, "element that does not end")
	case n < len(element):
		return refuse(BadFormat, "more than one element")
	}
	return nil
}
