package frame

import "bytes"

// AppendChild returns a stanza that a Reader or Check let through with one more
// element within it, behind the others. The stanza itself is left as it is; child
// must be a whole element that uses no prefix of others.
func AppendChild(stanza, child []byte) ([]byte, error) {
	t, err := ParseTop(stanza)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, len(stanza)+len(child)+len("</>")+len(t.Name))
	if t.Empty {
		out = append(out, stanza[:t.Len-len("/>")]...)
		out = append(append(out, '>'), child...)
		out = append(append(out, "</"...), t.Name...)
		return append(out, '>'), nil
	}
	end := bytes.LastIndex(stanza, []byte("</"))
	if end < t.Len {
		return nil, refuse(NotWellFormed, "element that does not end")
	}
	out = append(out, stanza[:end]...)
	out = append(out, child...)
	return append(out, stanza[end:]...), nil
}
