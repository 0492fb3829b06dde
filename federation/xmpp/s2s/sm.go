package s2s

import (
	"fmt"
	"strconv"

	"github.com/yggate/yggate/federation/xmpp/frame"
)

// Stream management (XEP-0198) says which stanzas the other side has handled, in
// both directions and where the server has it too. Streams are not resumed: that
// takes a server that keeps its side of a stream while we are gone, and stock
// servers do so for clients only. What was not acknowledged when a stream broke
// is sent again on the next by whoever still holds it.
const nsSM = "urn:xmpp:sm:3"

const (
	smFeature  = "<sm xmlns='" + nsSM + "'/>"
	smEnable   = "<enable xmlns='" + nsSM + "'/>"
	smEnabled  = "<enabled xmlns='" + nsSM + "'/>"
	smRequest  = "<r xmlns='" + nsSM + "'/>"
	smFailed   = "<failed xmlns='" + nsSM + "'><%s xmlns='" + nsStanzas + "'/></failed>"
	smAckHead  = "<a xmlns='" + nsSM + "' h='"
	smAckTail  = "'/>"
	smAckBytes = len(smAckHead) + len("4294967295") + len(smAckTail)
)

// smAck says that h stanzas have been handled (XEP-0198 §4).
func smAck(h uint32) []byte {
	b := make([]byte, 0, smAckBytes)
	b = append(b, smAckHead...)
	b = strconv.AppendUint(b, uint64(h), 10)
	return append(b, smAckTail...)
}

// handledCount reads what an <a/> says.
func handledCount(el *frame.Element) (uint32, error) {
	h, err := strconv.ParseUint(el.Attr("h"), 10, 32)
	if err != nil {
		return 0, refuse(conditionInvalidXML, "<a/> whose 'h' is no count of stanzas")
	}
	return uint32(h), nil
}

// toldError is a reason to end a stream that the server is told.
type toldError interface {
	error
	XML() []byte
}

// countError is an acknowledgement of stanzas that were not sent, or the taking
// back of one (XEP-0198 §4).
type countError struct{ h, sent uint32 }

func (e *countError) Error() string {
	return fmt.Sprintf("the local server acknowledged %d stanzas, %d were sent", e.h, e.sent)
}

func (e *countError) XML() []byte {
	return fmt.Appendf(nil, "<stream:error><undefined-condition xmlns='%s'/><handled-count-too-high xmlns='%s' h='%d' send-count='%d'/></stream:error>",
		nsStreams, nsSM, e.h, e.sent)
}

// enable turns stream management on if the server offers it. A server that then
// declines is as one without it.
func (st *stream) enable(o offer) error {
	if o.features.Child(nsSM, "sm") == nil {
		return nil
	}
	if err := st.send(smEnable); err != nil {
		return err
	}
	for { // as in dialbackAnswer, the handshake's bounds end the wait
		el, err := st.next()
		if err != nil {
			return err
		}
		if st.managed = el.Is(nsSM, "enabled"); st.managed || el.Is(nsSM, "failed") {
			return nil
		}
	}
}
