package peertest

import (
	"context"
	"fmt"
	"io"
	"time"
)

// stepWithin bounds one step of a conversation: the first message may have to
// wait for a stream to be opened, with a lookup and two handshakes.
const stepWithin = 20 * time.Second

// Party is one side of a conversation: a user on a server.
type Party struct {
	*Client
	// Name is the user's, for the transcript: "alice".
	Name string
	// Domain and MUCDomain are the user's server's.
	Domain, MUCDomain string
}

// Conversation lets two users of two servers do what users do: messages,
// presence subscriptions, disco and ping, and a room on either server, each both
// ways. It writes a transcript for people and stops at the first step that
// fails. Both must be freshly logged in, and not subscribed to each other.
func Conversation(ctx context.Context, a, b Party, out io.Writer) error {
	c := conversation{ctx: ctx, out: out, within: stepWithin}
	c.say("", "%s is on %s, %s on %s", a.JID, a.Domain, b.JID, b.Domain)
	for _, p := range []Party{a, b} {
		c.step(p.Name+" goes online", func(ctx context.Context) error { return p.Available(ctx) })
	}
	c.message(a, b)
	c.message(b, a)
	c.subscribe(a, b)
	c.subscribe(b, a)
	c.query(a, b)
	c.query(b, a)
	c.room(a, b)
	c.room(b, a)
	return c.err
}

// Exchange lets two users send each other a message, as Conversation begins. It
// may be called again and again.
func Exchange(ctx context.Context, a, b Party, out io.Writer) error {
	c := conversation{ctx: ctx, out: out, within: stepWithin}
	c.message(a, b)
	c.message(b, a)
	return c.err
}

// conversation writes the transcript of steps, up to the first that fails.
type conversation struct {
	ctx    context.Context
	out    io.Writer
	within time.Duration // what one step may take
	err    error
}

// step runs f unless an earlier step failed.
func (c *conversation) step(what string, f func(context.Context) error) {
	if c.err != nil {
		return
	}
	ctx, cancel := context.WithTimeoutCause(c.ctx, c.within, fmt.Errorf("%s: not within %v", what, c.within))
	defer cancel()
	if err := f(ctx); err != nil {
		c.err = fmt.Errorf("%s: %w", what, err)
		c.say("FAILED", "%s", what)
	}
}

func (c *conversation) say(who, format string, args ...any) {
	if _, err := fmt.Fprintf(c.out, "%-7s %s\n", who, fmt.Sprintf(format, args...)); err != nil && c.err == nil {
		c.err = fmt.Errorf("write transcript: %w", err)
	}
}

func (c *conversation) message(from, to Party) {
	c.step("message from "+from.Name+" to "+to.Name, func(ctx context.Context) error {
		body := "Hello " + to.Name + ", this is " + from.Name + ". <Ünïcode & all> 👋"
		id := from.NewID()
		start := time.Now()
		if err := from.SendMessage(ctx, to.JID, body, id); err != nil {
			return err
		}
		s, err := awaitOrBounce(ctx, from, to, id)
		if err != nil {
			return err
		}
		if s.Body != body || s.From != from.JID {
			return fmt.Errorf("want %q from %s, have %s", body, from.JID, &s)
		}
		c.say(from.Name, "-> %s: %s  (%s)", to.Name, s.Body, round(s.Time.Sub(start)))
		return nil
	})
}

// awaitOrBounce waits for a message to arrive at to; an error that comes back to
// from instead ends the wait.
func awaitOrBounce(ctx context.Context, from, to Party, id string) (Stanza, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	bounce := make(chan Stanza, 1)
	go func() {
		s, err := from.Await(ctx, "error for "+id, func(s *Stanza) bool {
			return s.Kind == "message" && s.Type == "error" && s.ID == id
		})
		if err == nil {
			bounce <- s
			cancel()
		}
	}()
	s, err := to.Await(ctx, "message "+id+" at "+to.JID, func(s *Stanza) bool {
		return s.Kind == "message" && s.Type != "error" && s.ID == id && Bare(s.From) == Bare(from.JID)
	})
	if err != nil {
		select {
		case back := <-bounce:
			return back, fmt.Errorf("came back to %s: %s", from.JID, &back)
		default:
		}
	}
	return s, err
}

// subscribe has from ask for to's presence, to agree, and from see it.
func (c *conversation) subscribe(from, to Party) {
	c.step(from.Name+" subscribes to "+to.Name, func(ctx context.Context) error {
		asker, asked := Bare(from.JID), Bare(to.JID)
		mark := from.Mark()
		if err := from.Subscribe(ctx, asked); err != nil {
			return err
		}
		_, err := to.Await(ctx, "subscribe from "+asker, func(s *Stanza) bool {
			return s.Kind == "presence" && s.Type == "subscribe" && Bare(s.From) == asker
		})
		if err != nil {
			return err
		}
		if err := to.Approve(ctx, asker); err != nil {
			return err
		}
		_, err = from.AwaitAfter(ctx, mark, "subscribed from "+asked, func(s *Stanza) bool {
			return s.Kind == "presence" && s.Type == "subscribed" && Bare(s.From) == asked
		})
		if err != nil {
			return err
		}
		_, err = from.AwaitAfter(ctx, mark, "presence of "+to.JID, func(s *Stanza) bool {
			return s.Kind == "presence" && s.Type == "" && s.From == to.JID
		})
		if err != nil {
			return err
		}
		c.say(from.Name, "subscribed to %s and sees %s online", asked, to.JID)
		return nil
	})
}

// query has from ask to's server and client what they are and for a sign of life.
func (c *conversation) query(from, to Party) {
	for _, target := range []string{to.Domain, to.JID} {
		c.step(from.Name+" queries "+target, func(ctx context.Context) error {
			info, err := from.DiscoInfo(ctx, target)
			if err != nil {
				return err
			}
			if target == to.Domain && (len(info.Identity) == 0 || info.Identity[0].Category != "server") {
				return fmt.Errorf("disco %s: want a server, have identities %v", target, info.Identity)
			}
			took, err := from.Ping(ctx, target)
			if err != nil {
				return err
			}
			c.say(from.Name, "disco and ping of %s: %d features, %s", target, len(info.Features), round(took))
			return nil
		})
	}
}

// room has host open a room on its server, guest join it, and both speak.
func (c *conversation) room(host, guest Party) {
	room := "lounge-" + host.Name + "@" + host.MUCDomain
	c.step("room "+room, func(ctx context.Context) error {
		mark := host.Mark()
		if err := host.JoinMUC(ctx, room, host.Name); err != nil {
			return err
		}
		if err := guest.JoinMUC(ctx, room, guest.Name); err != nil {
			return err
		}
		_, err := host.AwaitAfter(ctx, mark, guest.Name+" in "+room, func(s *Stanza) bool {
			return s.Kind == "presence" && s.Type == "" && s.From == room+"/"+guest.Name
		})
		if err != nil {
			return err
		}
		c.say(guest.Name, "joined %s, where %s is", room, host.Name)
		for _, way := range [][2]Party{{guest, host}, {host, guest}} {
			if err := c.groupChat(ctx, room, way[0], way[1]); err != nil {
				return err
			}
		}
		return nil
	})
}

// groupChat has from speak in a room; both have to see it.
func (c *conversation) groupChat(ctx context.Context, room string, from, to Party) error {
	body := "Hello room, from " + from.Name
	id := from.NewID()
	mark, start := to.Mark(), time.Now()
	if err := from.GroupChat(ctx, room, body, id); err != nil {
		return err
	}
	for _, p := range []Party{from, to} {
		s, err := p.AwaitAfter(ctx, 0, "groupchat "+id+" at "+p.JID, func(s *Stanza) bool {
			return s.Kind == "message" && s.Body == body && s.From == room+"/"+from.Name && (p.JID == from.JID || s.Seq > mark) || s.Type == "error" && s.ID == id
		})
		if err != nil {
			return err
		}
		if s.Error != nil {
			return fmt.Errorf("groupchat to %s came back: %w", room, s.Error)
		}
		if p.JID == to.JID {
			c.say(from.Name, "-> room, seen by %s: %s  (%s)", to.Name, s.Body, round(s.Time.Sub(start)))
		}
	}
	return nil
}

func round(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
