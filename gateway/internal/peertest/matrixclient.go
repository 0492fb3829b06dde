package peertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// MatrixConfig says who logs in where.
type MatrixConfig struct {
	// URL is the homeserver's for clients; it should hold an IP address.
	URL string
	// User is the localpart.
	User, Password string
	// Dial replaces net.Dialer, to reach into a network namespace.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// MatrixClient is a Matrix client on a device of its own, which is in sync at all
// times. Methods may be called from many goroutines.
//
// Of the embedded client's methods those of the client-server API are meant to be
// used, not Sync.
type MatrixClient struct {
	*mautrix.Client
	*MatrixInbox

	// Name is the localpart, for the transcript: "alice".
	Name string

	stop context.CancelFunc
	done chan struct{}
}

// MatrixInbox holds the events that /sync brought.
type MatrixInbox = inbox[MatrixEvent, *MatrixEvent]

// MatrixEvent is an event that /sync brought.
type MatrixEvent struct {
	// Seq counts the events of a session from 1. Time is when it was read.
	Seq  uint64
	Time time.Time
	// Source is the part of /sync's answer that it was in.
	Source event.Source
	// Event has its content parsed where its type is known. A change in a
	// device list is shown as an event of type DeviceListChanged.
	*event.Event
}

// DeviceListChanged is the type of the events made of the device_lists of /sync:
// Sender is the user whose devices are others now (client-server API §10.11.5.5).
var DeviceListChanged = event.Type{Type: "device_lists.changed", Class: event.EphemeralEventType}

func (e *MatrixEvent) place() *uint64 { return &e.Seq }

func (e *MatrixEvent) String() string {
	text := fmt.Sprintf("%s %s from %s in %s (%s)", e.Type.Type, e.ID, e.Sender, e.RoomID, e.Source)
	if content, err := json.Marshal(e.Content.Raw); err == nil {
		text += fmt.Sprintf(" %.200s", content)
	}
	return text
}

// MatrixLogin logs in on a new device and begins to sync. The session lives until
// Close; while its server is down it keeps trying.
func MatrixLogin(ctx context.Context, cfg MatrixConfig) (*MatrixClient, error) {
	c, err := matrixLogin(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("log in as %s at %s: %w", cfg.User, cfg.URL, err)
	}
	return c, nil
}

func matrixLogin(ctx context.Context, cfg MatrixConfig) (*MatrixClient, error) {
	m, err := newMautrix(cfg.URL, cfg.Dial)
	if err != nil {
		return nil, err
	}
	_, err = m.Login(ctx, &mautrix.ReqLogin{
		Type:       mautrix.AuthTypePassword,
		Identifier: mautrix.UserIdentifier{Type: mautrix.IdentifierTypeUser, User: cfg.User},
		Password:   cfg.Password, StoreCredentials: true,
	})
	if err != nil {
		m.Client.CloseIdleConnections()
		return nil, err
	}
	syncing, stop := context.WithCancel(context.Background())
	c := &MatrixClient{
		Client: m, MatrixInbox: &MatrixInbox{waiters: map[*waiter[MatrixEvent]]struct{}{}},
		Name: cfg.User, stop: stop, done: make(chan struct{}),
	}
	s := &syncer{DefaultSyncer: mautrix.NewDefaultSyncer()}
	// Nothing is left out, however odd its content, and however much comes at once.
	s.FilterJSON = &mautrix.Filter{Room: &mautrix.RoomFilter{Timeline: &mautrix.FilterPart{Limit: inboxSize}}}
	s.ParseErrorHandler = func(*event.Event, error) bool { return true }
	s.FilterJSON = &mautrix.Filter{Room: &mautrix.RoomFilter{Timeline: &mautrix.FilterPart{Limit: timelineLimit}}}
	s.OnSync(c.deviceLists)
	s.OnEvent(func(_ context.Context, e *event.Event) {
		c.add(MatrixEvent{Time: time.Now(), Source: e.Mautrix.EventSource, Event: e})
	})
	m.Syncer = s
	// A client that is in sync is no statement about its user.
	m.SyncPresence = event.PresenceOffline
	go func() {
		defer close(c.done)
		c.end(fmt.Errorf("session of %s has ended: %w", c.UserID, m.SyncWithContext(syncing)))
	}()
	return c, nil
}

// newMautrix is a client that is logged in nowhere.
func newMautrix(url string, dial func(ctx context.Context, network, addr string) (net.Conn, error)) (*mautrix.Client, error) {
	m, err := mautrix.NewClient(url, "", "")
	if err != nil {
		return nil, err
	}
	// Contexts bound what takes long; a download may.
	m.Client = &http.Client{Transport: &http.Transport{DialContext: dial, MaxIdleConnsPerHost: 8}}
	return m, nil
}

// timelineLimit is more than comes between two syncs, also under load. Of what is
// more, /sync tells the last only.
const timelineLimit = 1000

// syncer keeps trying: a server of a test may be down for a while.
type syncer struct{ *mautrix.DefaultSyncer }

func (s *syncer) OnFailedSync(_ *mautrix.RespSync, err error) (time.Duration, error) {
	if errors.Is(err, mautrix.MUnknownToken) {
		return 0, err
	}
	return 100 * time.Millisecond, nil
}

func (c *MatrixClient) deviceLists(_ context.Context, r *mautrix.RespSync, _ string) bool {
	for _, user := range r.DeviceLists.Changed {
		c.add(MatrixEvent{Time: time.Now(), Event: &event.Event{Type: DeviceListChanged, Sender: user}})
	}
	return true
}

// Close ends the sync and waits for that. The device stays.
func (c *MatrixClient) Close() error {
	c.stop()
	<-c.done
	c.Client.Client.CloseIdleConnections()
	return nil
}

// Server is the server name of the user.
func (c *MatrixClient) Server() string { return c.UserID.Homeserver() }

// PublicRooms are the published rooms of a server (client-server API §10.5.4).
func (c *MatrixClient) PublicRooms(ctx context.Context, server string) ([]*mautrix.PublicRoomInfo, error) {
	var answer mautrix.RespPublicRooms
	url := c.BuildURLWithQuery(mautrix.ClientURLPath{"v3", "publicRooms"}, map[string]string{"server": server})
	if _, err := c.MakeRequest(ctx, http.MethodGet, url, nil, &answer); err != nil {
		return nil, fmt.Errorf("list public rooms of %s as %s: %w", server, c.UserID, err)
	}
	return answer.Chunk, nil
}

// Edit replaces the text of a message (client-server API §11.34).
func (c *MatrixClient) Edit(ctx context.Context, room id.RoomID, message id.EventID, text string) (id.EventID, error) {
	content := &event.MessageEventContent{MsgType: event.MsgText, Body: text}
	content.SetEdit(message)
	sent, err := c.SendMessageEvent(ctx, room, event.EventMessage, content)
	if err != nil {
		return "", fmt.Errorf("edit %s as %s: %w", message, c.UserID, err)
	}
	return sent.EventID, nil
}

// AwaitEvent waits for an event in a room.
func (c *MatrixClient) AwaitEvent(ctx context.Context, room id.RoomID, e id.EventID) (MatrixEvent, error) {
	return c.Await(ctx, e.String()+" at "+c.UserID.String(), func(have *MatrixEvent) bool {
		return have.ID == e && have.RoomID == room
	})
}
