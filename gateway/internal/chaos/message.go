package main

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// name says which message one is: the seq-th, from 0, of a conversation of a way.
type name struct {
	way, conv int
	seq       uint32
}

// String is what a message carries as its id and in its body.
func (n name) String() string { return fmt.Sprintf("%d-%d-%d", n.way, n.conv, n.seq) }

func parseName(s string) (n name, ok bool) {
	parts := strings.Split(s, "-")
	if len(parts) != 3 {
		return n, false
	}
	var v [3]uint64
	for i, p := range parts {
		var err error
		if v[i], err = strconv.ParseUint(p, 10, 32); err != nil {
			return n, false
		}
	}
	return name{int(v[0]), int(v[1]), uint32(v[2])}, true
}

// way is one direction of traffic: from one domain to another by one type of
// message. Order is promised within each of its conversations.
type way struct {
	from, to *site
	// fromDomain is the sending server's: that of its users or of its rooms.
	fromDomain, toDomain string
	kind                 string // the type of the messages: chat or groupchat
}

func (w *way) String() string { return w.fromDomain + " -> " + w.toDomain }

// padding gives a message the size of an ordinary one.
var padding = strings.Repeat("x", 160)

// body is the text of a message.
func (n name) body() string { return n.String() + " " + padding }

// message is the stanza.
func (w *way) message(n name) []byte {
	user := "u" + strconv.Itoa(n.conv)
	from := user + "@" + w.fromDomain + "/desk"
	return fmt.Appendf(nil, "<message from='%s' to='%s@%s' type='%s' id='%s'><body>%s</body></message>", from, user, w.toDomain, w.kind, n, n.body())
}

// received is what a stanza says about one of our messages.
type received struct {
	name  name
	told  bool // it is the error that answers the message
	wrong bool // its text is not the message's
}

// read finds out which message a stanza is. It is false for a stanza that is none
// of ours, such as presence. The gateways hand bytes on as they are, so that no
// parser is needed here.
func read(stanza []byte) (r received, ok bool) {
	tag, rest, found := bytes.Cut(stanza, []byte(">"))
	if !found || !bytes.HasPrefix(tag, []byte("<message ")) {
		return r, false
	}
	if r.name, ok = parseName(attr(tag, "id")); !ok {
		return r, false
	}
	if r.told = attr(tag, "type") == "error"; r.told {
		return r, true
	}
	body, _, _ := bytes.Cut(rest, []byte("</body>"))
	r.wrong = string(body) != "<body>"+r.name.body()
	return r, true
}

// attr is the value of an attribute of a tag, empty where there is none.
func attr(tag []byte, key string) string {
	for _, quote := range []string{"'", `"`} {
		if _, rest, ok := bytes.Cut(tag, []byte(" "+key+"="+quote)); ok {
			value, _, _ := bytes.Cut(rest, []byte(quote))
			return string(value)
		}
	}
	return ""
}
