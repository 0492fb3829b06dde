package frame

// plain takes elements as nearly all are, many at a time: names of lower-case
// letters first, one space before an attribute, values and text in ASCII
// without references. Where something else comes it stops before the tag or
// attribute in question and leaves that to the states, which know all of XML.
// So it only ever makes the scanner faster; it decides nothing.
func (s *scanner) plain(b []byte, i int) int {
	const slack = len("</") + wordSize // a word can be read behind "</"
	for len(b)-i >= slack {
		if b[i] != '<' {
			i = skipText(b, i)
			if len(b)-i < slack || b[i] != '<' {
				return i
			}
		}
		from := i
		if b[i+1] == '/' {
			i = s.plainEnd(b, i)
		} else {
			i = s.plainStart(b, i)
		}
		if i == from || s.state != inText {
			return i
		}
	}
	return i
}

// plainEnd takes an end tag that begins at i.
func (s *scanner) plainEnd(b []byte, i int) int {
	if len(s.open) == 0 {
		return i
	}
	el := &s.open[len(s.open)-1]
	from := i + len("</")
	end := from + el.len()
	switch {
	case end >= len(b) || b[end] != '>':
		return i
	case el.len() < wordSize:
		if word(b, from)&below(el.len()) != el.key {
			return i
		}
	case string(b[from:end]) != string(el.of(b)):
		return i
	}
	s.pop()
	return end + 1
}

// plainStart takes a start tag that begins at i, or as much of it as is plain.
func (s *scanner) plainStart(b []byte, i int) int {
	from := i + 1
	w := word(b, from)
	n := first(^lower(w) & highs)
	if n == 0 || len(s.open) == s.lim.Depth {
		return i
	}
	end := from + n
	for end < len(b) && class[b[end]]&(nameByte|odd) == nameByte {
		end++
	}
	if end == len(b) || class[b[end]]&odd != 0 {
		return i
	}
	if n < wordSize {
		w &= below(n)
	}
	if n < end-from {
		w = keyOf(b[from:end])
	}
	s.open = append(s.open, name{span{int32(from), int32(end)}, w})
	s.attrs, s.ns, s.spaced = s.attrs[:0], false, false
	end = s.plainAttrs(b, end)
	switch {
	case s.ns || end == len(b):
	case b[end] == '>':
		return end + 1
	case b[end] == '/' && end+1 < len(b) && b[end+1] == '>':
		s.pop()
		return end + 2
	}
	s.state = wantAttr
	return end
}

// plainAttrs takes the attributes that begin at i, as far as they are plain.
func (s *scanner) plainAttrs(b []byte, i int) int {
next:
	for len(b)-i > len(" ='")+wordSize && b[i] == ' ' && len(s.attrs) < s.lim.Attrs {
		w := word(b, i+1)
		n := first(^lower(w) & highs)
		if w == xmlLangKey {
			n = wordSize
		} else if n == 0 || n == wordSize {
			return i
		} else {
			w &= below(n)
		}
		eq := i + 1 + n
		if b[eq] != '=' {
			return i
		}
		quote := b[eq+1]
		if quote != '\'' && quote != '"' {
			return i
		}
		end := skipValue(b, eq+2, quote)
		if end == len(b) || b[end] != quote {
			return i
		}
		for k := range s.attrs {
			if s.attrs[k].name.key == w {
				break next
			}
		}
		s.attrs = append(s.attrs, attr{name{span{int32(i + 1), int32(eq)}, w}, span{int32(eq + 2), int32(end)}})
		if w == xmlnsKey && mayBeReserved(end-eq-2) {
			s.ns = true
		}
		i = end + 1
	}
	return i
}
