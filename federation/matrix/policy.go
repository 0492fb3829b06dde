package matrix

import (
	"bytes"
	"encoding/json"

	"maunium.net/go/mautrix"

	"github.com/yggate/yggate/federation"
)

// denyRoom refuses what would bring somebody into a room that may not cross: an
// invite, a join or a knock, in either direction. Leaving stays possible. body is
// the request's, if there is one and it was read: not every homeserver checks that
// it is about the room of the path.
func denyRoom(m *federation.MatrixPolicy, t *target, body []byte) *mautrix.RespError {
	if len(m.DenyRooms) == 0 {
		return nil
	}
	switch t.endpoint {
	case endpointInvite, endpointMakeJoin, endpointSendJoin, endpointMakeKnock, endpointSendKnock:
		if !m.AllowsRoom(t.room) || namesRoom(body, m) {
			return respond(mautrix.MForbidden, "the operator of this gateway does not let this room cross")
		}
	}
	return nil
}

// namesRoom says whether JSON has a denied room as a room_id, at any place.
func namesRoom(body []byte, m *federation.MatrixPolicy) bool {
	d := json.NewDecoder(bytes.NewReader(body))
	for before := ""; ; {
		tok, err := d.Token()
		if err != nil {
			return false // the end, or not JSON, which checkJSON refuses
		}
		s, _ := tok.(string)
		if before == "room_id" && !m.AllowsRoom(s) {
			return true
		}
		before = s
	}
}
