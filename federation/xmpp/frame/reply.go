package frame

// NSStanzas is the namespace of stanza error conditions.
const NSStanzas = "urn:ietf:params:xml:ns:xmpp-stanzas"

// ErrorReply makes the stanza error (RFC 6120 §8.3) that gives a stanza back to
// its sender: from and to swapped, id kept. condition is one of §8.3.3 and
// errType one of "auth", "cancel", "continue", "modify", "wait"; text (for
// people) and by (the JID that says so) may be empty. It is false for what must
// not be answered: errors, iq results, presence of type unavailable, elements
// that are no stanza, and stanzas that name no sender or no recipient.
func ErrorReply(stanza []byte, condition, errType, text, by string) ([]byte, bool) {
	t, err := ParseTop(stanza)
	if err != nil || !t.answerable() {
		return nil, false
	}
	b := make([]byte, 0, 256+len(t.From)+len(t.To)+len(t.ID)+len(text)+len(by))
	b = append(b, '<')
	b = append(b, t.Name...)
	b = appendAttr(b, "from", t.To)
	b = appendAttr(b, "to", t.From)
	if t.ID != nil {
		b = appendAttr(b, "id", t.ID)
	}
	b = append(b, " type='error'><error"...)
	if by != "" {
		b = appendAttr(b, "by", []byte(by))
	}
	b = appendAttr(b, "type", []byte(errType))
	b = append(b, "><"...)
	b = append(b, condition...)
	b = append(b, " xmlns='"+NSStanzas+"'/>"...)
	if text != "" {
		b = append(b, "<text xmlns='"+NSStanzas+"'>"...)
		b = AppendEscaped(b, []byte(text))
		b = append(b, "</text>"...)
	}
	b = append(b, "</error></"...)
	b = append(b, t.Name...)
	return append(b, '>'), true
}

func (t *Top) answerable() bool {
	if len(t.From) == 0 || len(t.To) == 0 {
		return false
	}
	kind := string(t.Type)
	switch t.Kind {
	case Message:
		return kind != "error"
	case Presence:
		return kind != "error" && kind != "unavailable"
	case IQ:
		return kind == "get" || kind == "set"
	}
	return false
}

func appendAttr(b []byte, name string, value []byte) []byte {
	b = append(b, ' ')
	b = append(b, name...)
	b = append(b, "='"...)
	b = AppendEscaped(b, value)
	return append(b, '\'')
}
