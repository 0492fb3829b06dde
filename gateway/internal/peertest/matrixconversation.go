package peertest

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// matrixStepWithin bounds one step: a first join fetches keys, state and events,
// each with a signature or many, and Dendrite waits for disks on the way.
const matrixStepWithin = 60 * time.Second

// matrixMedia is the size of what MatrixConversation uploads.
const matrixMedia = 1 << 20

// MatrixConversation lets two users of two homeservers do what users do: find and
// join a published room with its history, talk, edit, react and redact, show what
// ephemeral events show, look each other's profile, devices and keys up, pass
// media on, invite, leave and come back. It writes a transcript for people and
// stops at the first step that fails. It may be called again and again.
func MatrixConversation(ctx context.Context, a, b *MatrixClient, out io.Writer) error {
	c := matrixConversation{conversation{ctx: ctx, out: out, within: matrixStepWithin}}
	c.say("", "%s is on %s, %s on %s", a.UserID, a.Server(), b.UserID, b.Server())
	room := c.lounge(a)
	c.directory(room, b)
	c.join(room, b, a)
	c.history(room, b)
	for _, way := range [][2]*MatrixClient{{a, b}, {b, a}} {
		c.messages(room.id, way[0], way[1])
	}
	for _, way := range [][2]*MatrixClient{{a, b}, {b, a}} {
		from, to := way[0], way[1]
		c.typing(room.id, from, to)
		c.receipt(room.id, from, to)
		c.presence(from, to)
		c.profile(from, to)
		c.devices(from, to)
		c.toDevice(from, to)
		c.media(from, to)
	}
	c.invite(b, a)
	c.comeBack(room, b, a)
	return c.err
}

// MatrixExchange lets two users who are in a room send each other a message.
func MatrixExchange(ctx context.Context, room id.RoomID, a, b *MatrixClient, out io.Writer) error {
	c := matrixConversation{conversation{ctx: ctx, out: out, within: matrixStepWithin}}
	c.text(room, a, b)
	c.text(room, b, a)
	return c.err
}

// MatrixGathering brings users of several homeservers into one room of the first,
// where each one's message must reach every other. It returns the room.
func MatrixGathering(ctx context.Context, out io.Writer, host *MatrixClient, guests ...*MatrixClient) (id.RoomID, error) {
	c := matrixConversation{conversation{ctx: ctx, out: out, within: matrixStepWithin}}
	room := c.lounge(host)
	present := []*MatrixClient{host}
	for _, guest := range guests {
		c.join(room, guest, present...)
		present = append(present, guest)
	}
	for _, from := range present {
		c.text(room.id, from, slices.DeleteFunc(slices.Clone(present), func(to *MatrixClient) bool { return to == from })...)
	}
	return room.id, c.err
}

// matrixConversation has the steps of conversations on Matrix.
type matrixConversation struct{ conversation }

// lounge is a published room, with what was said before others came.
type lounge struct {
	id      id.RoomID
	alias   id.RoomAlias
	name    string
	history []id.EventID
}

func (c *matrixConversation) lounge(host *MatrixClient) lounge {
	local := "lounge-" + host.Name + "-" + strings.ToLower(rand.Text()[:8])
	room := lounge{alias: id.NewRoomAlias(local, host.Server()), name: "The lounge of " + host.Name}
	c.step("room "+room.alias.String(), func(ctx context.Context) error {
		created, err := host.CreateRoom(ctx, &mautrix.ReqCreateRoom{
			Preset: "public_chat", Visibility: "public", RoomAliasName: local, Name: room.name,
		})
		if err != nil {
			return err
		}
		room.id = created.RoomID
		for i := range 5 {
			sent, err := host.SendText(ctx, room.id, fmt.Sprintf("Nobody is here yet (%d)", i+1))
			if err != nil {
				return err
			}
			room.history = append(room.history, sent.EventID)
		}
		c.say(host.Name, "opened %s", room.alias)
		return nil
	})
	return room
}

// directory has guest find the room among those that its server publishes.
func (c *matrixConversation) directory(room lounge, guest *MatrixClient) {
	server := serverOf(room.alias)
	c.step("public rooms of "+server, func(ctx context.Context) error {
		rooms, err := guest.PublicRooms(ctx, server)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(rooms, func(r *mautrix.PublicRoomInfo) bool { return r.RoomID == room.id })
		if i < 0 {
			return fmt.Errorf("%s is not among the %d rooms", room.id, len(rooms))
		}
		if r := rooms[i]; r.Name != room.name || r.CanonicalAlias != room.alias || r.NumJoinedMembers < 1 {
			return fmt.Errorf("listed as %+v", r)
		}
		c.say(guest.Name, "finds %s in the directory of %s", room.alias, server)
		return nil
	})
}

// join has guest join by the room's alias; those who are there must see it.
func (c *matrixConversation) join(room lounge, guest *MatrixClient, present ...*MatrixClient) {
	c.step(guest.Name+" joins "+room.alias.String(), func(ctx context.Context) error {
		marks, start := marksOf(present), time.Now()
		joined, err := guest.JoinRoom(ctx, room.alias.String(), nil)
		if err != nil {
			return err
		}
		if joined.RoomID != room.id {
			return fmt.Errorf("joined %s, want %s", joined.RoomID, room.id)
		}
		took := time.Since(start)
		for i, p := range present {
			if err := awaitMember(ctx, p, marks[i], room.id, guest.UserID, event.MembershipJoin); err != nil {
				return err
			}
		}
		c.say(guest.Name, "joined %s  (%s)", room.alias, round(took))
		return nil
	})
}

// history has guest read what was said before it came, which only the room's
// first server has.
func (c *matrixConversation) history(room lounge, guest *MatrixClient) {
	c.step("history of "+room.alias.String(), func(ctx context.Context) error {
		missing := map[id.EventID]bool{}
		for _, e := range room.history {
			missing[e] = true
		}
		// A server may come back with less than there is, while it fetches.
		err := poll(ctx, nil, func(ctx context.Context) error {
			for from := ""; ; {
				page, err := guest.Messages(ctx, room.id, from, "", mautrix.DirectionBackward, nil, 50)
				if err != nil {
					return err
				}
				for _, e := range page.Chunk {
					delete(missing, e.ID)
				}
				if len(missing) == 0 {
					return nil
				}
				if page.End == "" || page.End == from {
					return fmt.Errorf("%d of %d messages are missing", len(missing), len(room.history))
				}
				from = page.End
			}
		})
		if err != nil {
			return err
		}
		c.say(guest.Name, "reads the %d messages before the join", len(room.history))
		return nil
	})
}

// messages is a message and what may become of it.
func (c *matrixConversation) messages(room id.RoomID, from, to *MatrixClient) {
	message := c.text(room, from, to)
	c.step(from.Name+" edits a message", func(ctx context.Context) error {
		start, text := time.Now(), "Hello again, "+to.Name
		edit, err := from.Edit(ctx, room, message, text)
		if err != nil {
			return err
		}
		e, err := to.AwaitEvent(ctx, room, edit)
		if err != nil {
			return err
		}
		m := e.Content.AsMessage()
		if m.RelatesTo.GetReplaceID() != message || m.NewContent == nil || m.NewContent.Body != text {
			return fmt.Errorf("the edit arrived as %s", &e)
		}
		c.say(from.Name, "edits: %s  (%s)", text, round(e.Time.Sub(start)))
		return nil
	})
	c.step(to.Name+" reacts", func(ctx context.Context) error {
		start := time.Now()
		sent, err := to.SendReaction(ctx, room, message, "👍")
		if err != nil {
			return err
		}
		e, err := from.AwaitEvent(ctx, room, sent.EventID)
		if err != nil {
			return err
		}
		if r := e.Content.AsReaction().RelatesTo; r.GetAnnotationID() != message || r.GetAnnotationKey() != "👍" {
			return fmt.Errorf("the reaction arrived as %s", &e)
		}
		c.say(to.Name, "reacts: 👍  (%s)", round(e.Time.Sub(start)))
		return nil
	})
	c.step(from.Name+" redacts a message", func(ctx context.Context) error { return c.redact(ctx, room, message, from, to) })
}

func (c *matrixConversation) redact(ctx context.Context, room id.RoomID, message id.EventID, from, to *MatrixClient) error {
	mark, start := to.Mark(), time.Now()
	if _, err := from.RedactEvent(ctx, room, message, mautrix.ReqRedact{Reason: "said too much"}); err != nil {
		return err
	}
	e, err := to.AwaitAfter(ctx, mark, "redaction of "+message.String(), func(e *MatrixEvent) bool {
		return e.RoomID == room && e.Type == event.EventRedaction && (e.Redacts == message || e.Content.AsRedaction().Redacts == message)
	})
	if err != nil {
		return err
	}
	left, err := to.GetEvent(ctx, room, message)
	if err != nil {
		return err
	}
	if len(left.Content.Raw) != 0 {
		return fmt.Errorf("%s still has %v at %s", message, left.Content.Raw, to.Server())
	}
	c.say(from.Name, "redacts the message  (%s)", round(e.Time.Sub(start)))
	return nil
}

// text has from say something that all others must see.
func (c *matrixConversation) text(room id.RoomID, from *MatrixClient, others ...*MatrixClient) (message id.EventID) {
	c.step("message from "+from.Name, func(ctx context.Context) error {
		body := "Hello, this is " + from.Name + ". <Ünïcode & \"all\"> 👋\u2028"
		start := time.Now()
		sent, err := from.SendText(ctx, room, body)
		if err != nil {
			return err
		}
		message = sent.EventID
		for _, to := range others {
			e, err := to.AwaitEvent(ctx, room, message)
			if err != nil {
				return err
			}
			if e.Sender != from.UserID || e.Content.AsMessage().Body != body {
				return fmt.Errorf("want %q from %s, have %s", body, from.UserID, &e)
			}
			c.say(from.Name, "-> %s: %s  (%s)", to.Name, strings.TrimSpace(body), round(e.Time.Sub(start)))
		}
		return nil
	})
	return message
}

func (c *matrixConversation) typing(room id.RoomID, from, to *MatrixClient) {
	c.step(from.Name+" types", func(ctx context.Context) error {
		for _, typing := range []bool{true, false} {
			mark := to.Mark()
			if _, err := from.UserTyping(ctx, room, typing, 30*time.Second); err != nil {
				return err
			}
			_, err := to.AwaitAfter(ctx, mark, fmt.Sprintf("typing=%v of %s", typing, from.UserID), func(e *MatrixEvent) bool {
				return e.RoomID == room && e.Type == event.EphemeralEventTyping &&
					slices.Contains(e.Content.AsTyping().UserIDs, from.UserID) == typing
			})
			if err != nil {
				return err
			}
		}
		c.say(from.Name, "types, and stops, as %s sees", to.Name)
		return nil
	})
}

// receipt has to say something that from reads.
func (c *matrixConversation) receipt(room id.RoomID, from, to *MatrixClient) {
	message := c.text(room, to, from)
	c.step(from.Name+" reads", func(ctx context.Context) error {
		mark := to.Mark()
		if err := from.MarkRead(ctx, room, message); err != nil {
			return err
		}
		_, err := to.AwaitAfter(ctx, mark, "receipt of "+from.UserID.String()+" for "+message.String(), func(e *MatrixEvent) bool {
			if e.RoomID != room || e.Type != event.EphemeralEventReceipt {
				return false
			}
			_, ok := (*e.Content.AsReceipt())[message][event.ReceiptTypeRead][from.UserID]
			return ok
		})
		if err != nil {
			return err
		}
		c.say(from.Name, "has read it, as %s sees", to.Name)
		return nil
	})
}

func (c *matrixConversation) presence(from, to *MatrixClient) {
	c.step("presence of "+from.Name, func(ctx context.Context) error {
		status := "out for lunch " + rand.Text()[:4]
		mark := to.Mark()
		if err := from.SetPresence(ctx, mautrix.ReqPresence{Presence: event.PresenceUnavailable, StatusMsg: status}); err != nil {
			return err
		}
		e, err := to.AwaitAfter(ctx, mark, "presence of "+from.UserID.String(), func(e *MatrixEvent) bool {
			return e.Type == event.EphemeralEventPresence && e.Sender == from.UserID && e.Content.AsPresence().StatusMessage == status
		})
		if err != nil {
			return err
		}
		c.say(from.Name, "is %s: %s", e.Content.AsPresence().Presence, status)
		return nil
	})
}

func (c *matrixConversation) profile(from, to *MatrixClient) {
	c.step("profile of "+from.Name, func(ctx context.Context) error {
		name := "Ms/Mr " + from.Name + " ✨ " + rand.Text()[:4]
		if err := from.SetDisplayName(ctx, name); err != nil {
			return err
		}
		have, err := to.GetDisplayName(ctx, from.UserID)
		if err != nil {
			return err
		}
		if have.DisplayName != name {
			return fmt.Errorf("%s has the name %q at %s, want %q", from.UserID, have.DisplayName, to.Server(), name)
		}
		c.say(to.Name, "finds the name of %s: %s", from.UserID, have.DisplayName)
		return nil
	})
}

func (c *matrixConversation) media(from, to *MatrixClient) {
	c.step("media of "+from.Name, func(ctx context.Context) error {
		content, err := from.UploadRandom(ctx, matrixMedia)
		if err != nil {
			return err
		}
		start := time.Now()
		if err := to.DownloadRandom(ctx, content); err != nil {
			return err
		}
		c.say(to.Name, "downloads the %d KiB that %s uploaded, byte for byte  (%s)", matrixMedia>>10, from.Name, round(time.Since(start)))
		return nil
	})
}

// invite has host open a private room, and guest come when asked.
func (c *matrixConversation) invite(host, guest *MatrixClient) {
	var room id.RoomID
	c.step(host.Name+" invites "+guest.Name, func(ctx context.Context) error {
		created, err := host.CreateRoom(ctx, &mautrix.ReqCreateRoom{Preset: "private_chat", Name: "A word in private"})
		if err != nil {
			return err
		}
		room = created.RoomID
		mark := guest.Mark()
		if _, err := host.InviteUser(ctx, room, &mautrix.ReqInviteUser{UserID: guest.UserID}); err != nil {
			return err
		}
		if err := awaitMember(ctx, guest, mark, room, guest.UserID, event.MembershipInvite); err != nil {
			return err
		}
		mark = host.Mark()
		if _, err := guest.JoinRoomByID(ctx, room); err != nil {
			return err
		}
		if err := awaitMember(ctx, host, mark, room, guest.UserID, event.MembershipJoin); err != nil {
			return err
		}
		c.say(guest.Name, "accepts the invite of %s", host.Name)
		return nil
	})
	c.text(room, host, guest)
	c.text(room, guest, host)
}

// comeBack has guest leave the room, and join it again.
func (c *matrixConversation) comeBack(room lounge, guest, host *MatrixClient) {
	c.step(guest.Name+" leaves "+room.alias.String(), func(ctx context.Context) error {
		mark := host.Mark()
		if _, err := guest.LeaveRoom(ctx, room.id); err != nil {
			return err
		}
		if err := awaitMember(ctx, host, mark, room.id, guest.UserID, event.MembershipLeave); err != nil {
			return err
		}
		c.say(guest.Name, "left %s", room.alias)
		return nil
	})
	c.join(room, guest, host)
	c.text(room.id, host, guest)
	c.text(room.id, guest, host)
}

// awaitMember waits until p sees a user's membership change.
func awaitMember(ctx context.Context, p *MatrixClient, mark uint64, room id.RoomID, user id.UserID, m event.Membership) error {
	_, err := p.AwaitAfter(ctx, mark, fmt.Sprintf("%s of %s in %s", m, user, room), func(e *MatrixEvent) bool {
		return e.RoomID == room && e.Type == event.StateMember && e.GetStateKey() == user.String() && e.Content.AsMember().Membership == m
	})
	return err
}

func marksOf(clients []*MatrixClient) []uint64 {
	marks := make([]uint64, len(clients))
	for i, c := range clients {
		marks[i] = c.Mark()
	}
	return marks
}

func serverOf(alias id.RoomAlias) string {
	_, server, _ := strings.Cut(alias.String(), ":")
	return server
}
