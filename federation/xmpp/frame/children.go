package frame

import (
	"bytes"
	"iter"
)

// Child is an element directly within another. Its bytes are part of that one.
type Child struct {
	Name  []byte // without a prefix
	Space []byte // its namespace, decoded
	tag   []byte // what stands behind the name in its first tag
}

// Attr is the decoded value of an attribute that has no prefix, or nil.
func (c *Child) Attr(name string) []byte { return attrOf(c.tag, "", name) }

// Children yields the elements directly within a stanza that a Reader or Check
// let through, in order. It looks for the ends of tags and at no text, so that it
// costs little more than a search for '<'.
func Children(stanza []byte) iter.Seq[Child] {
	return func(yield func(Child) bool) {
		start := skip(stanza, 1, nameByte)
		i := tagEnd(stanza, start)
		if i < 0 || stanza[i-2] == '/' {
			return
		}
		var few [4]declaration // nearly always enough
		root := declarations(few[:0], stanza[start:i])
		for depth := 0; depth >= 0; {
			open := bytes.IndexByte(stanza[i:], '<')
			if open < 0 || i+open+1 == len(stanza) {
				return
			}
			i += open
			var end int
			switch stanza[i+1] {
			case '/':
				depth--
				end = after(stanza, i, ">")
			case '!': // a CDATA section: all else was refused
				end = after(stanza, i, "]]>")
			default:
				if end = tagEnd(stanza, i+1); end < 0 {
					return
				}
				if depth == 0 && !yield(childOf(root, stanza[i:end])) {
					return
				}
				if stanza[end-2] != '/' {
					depth++
				}
			}
			if end < 0 {
				return
			}
			i = end
		}
	}
}

var nsServer = []byte(NSServer)

// tagEnd returns the index behind the '>' of the tag that i is in, or -1.
func tagEnd(b []byte, i int) int {
	for i < len(b) {
		switch c := b[i]; c {
		case '>':
			return i + 1
		case '\'', '"':
			n := bytes.IndexByte(b[i+1:], c)
			if n < 0 {
				return -1
			}
			i += n + 1
		}
		i++
	}
	return -1
}

// after returns the index behind the next mark, or -1.
func after(b []byte, i int, mark string) int {
	n := bytes.Index(b[i:], []byte(mark))
	if n < 0 {
		return -1
	}
	return i + n + len(mark)
}

// declaration binds a prefix, or where that is empty the default, to a namespace.
type declaration struct{ prefix, space []byte }

// declarations appends those of a first tag, of which the attributes are given.
func declarations(dst []declaration, tag []byte) []declaration {
	for {
		key, value, n := nextAttr(tag)
		if n == 0 || key == nil {
			return dst
		}
		if prefix, ok := bytes.CutPrefix(key, xmlnsPrefix); ok {
			dst = append(dst, declaration{prefix, unescape(value)})
		} else if string(key) == "xmlns" {
			dst = append(dst, declaration{nil, unescape(value)})
		}
		tag = tag[n:]
	}
}

var xmlnsPrefix = []byte("xmlns:")

// childOf reads a first tag within a root that declares namespaces.
func childOf(root []declaration, tag []byte) Child {
	end := skip(tag, 1, nameByte)
	name := tag[1:end]
	c := Child{Name: name, tag: tag[end:]}
	var prefix []byte
	of, key := "", "xmlns"
	if i := bytes.IndexByte(name, ':'); i >= 0 {
		prefix, c.Name = name[:i], name[i+1:]
		of, key = "xmlns:", string(prefix)
	}
	if c.Space = attrOf(c.tag, of, key); c.Space != nil {
		return c
	}
	for _, d := range root {
		if bytes.Equal(d.prefix, prefix) {
			c.Space = d.space
			return c
		}
	}
	if prefix == nil {
		c.Space = nsServer
	}
	return c
}

// attrOf returns the decoded value of the attribute prefix+name, or nil.
func attrOf(tag []byte, prefix, name string) []byte {
	for {
		key, value, n := nextAttr(tag)
		if n == 0 || key == nil {
			return nil
		}
		if len(key) == len(prefix)+len(name) && string(key[:len(prefix)]) == prefix && string(key[len(prefix):]) == name {
			return unescape(value)
		}
		tag = tag[n:]
	}
}
