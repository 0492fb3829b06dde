//go:build integration

package gateway_test

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/yggate/yggate/gateway/internal/peertest"
)

// mqttClient is an ordinary client of a grid's broker, and what it was given.
type mqttClient struct {
	*paho.Client
	mu  sync.Mutex
	got []*paho.Publish
	// on is called for each message, if it is there.
	on func(*paho.Publish)
}

// mqttUser connects a client that subscribes to filter, if that is not empty.
func mqttUser(t *testing.T, m *peertest.Mosquitto, filter string, on func(*paho.Publish)) *mqttClient {
	t.Helper()
	return mqttUserAs(t, m.MQTT, peertest.MQTTLogin{}, filter, on)
}

// mqttUserAs is mqttUser with a broker that wants to know who it is.
func mqttUserAs(t *testing.T, broker netip.AddrPort, as peertest.MQTTLogin, filter string, on func(*paho.Publish)) *mqttClient {
	t.Helper()
	conn, err := net.Dial("tcp", broker.String())
	if err != nil {
		t.Fatal(err)
	}
	c := &mqttClient{on: on}
	c.Client = paho.NewClient(paho.ClientConfig{
		Conn: conn,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			c.mu.Lock()
			c.got = append(c.got, p.Packet)
			c.mu.Unlock()
			if c.on != nil {
				c.on(p.Packet)
			}
			return true, nil
		}},
	})
	window := uint16(65535)
	if _, err := c.Connect(t.Context(), &paho.Connect{
		Username: as.User, UsernameFlag: as.User != "", Password: []byte(as.Password), PasswordFlag: as.User != "", CleanStart: true, ClientID: "user" + strconv.FormatUint(rand.Uint64(), 36), KeepAlive: 30, Properties: &paho.ConnectProperties{ReceiveMaximum: &window},
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Disconnect(&paho.Disconnect{}) }) // the broker may have ended before
	if filter != "" {
		if _, err := c.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: 2}}}); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// publish publishes at QoS 1 and waits for the broker's acknowledgement.
func (c *mqttClient) publish(t *testing.T, topic, payload string) {
	t.Helper()
	c.put(t, &paho.Publish{Topic: topic, QoS: 1, Payload: []byte(payload)})
}

// put publishes and waits until the broker has acknowledged.
func (c *mqttClient) put(t *testing.T, m *paho.Publish) {
	t.Helper()
	if _, err := c.Publish(t.Context(), m); err != nil && !strings.Contains(err.Error(), "No matching subscribers") {
		t.Fatal(err)
	}
}

// messages are all that came so far.
func (c *mqttClient) messages() []*paho.Publish {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.got)
}

// payloads are those of all that came below a topic.
func (c *mqttClient) payloads(prefix string) []string {
	var all []string
	for _, p := range c.messages() {
		if strings.HasPrefix(p.Topic, prefix) {
			all = append(all, string(p.Payload))
		}
	}
	return all
}

// await waits until a message with this payload came.
func (c *mqttClient) await(t *testing.T, payload string) {
	t.Helper()
	for end := time.Now().Add(patience); !slices.Contains(c.payloads(""), payload); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%q did not come in %v, but %d others: %.500q", payload, patience, len(c.payloads("")), c.payloads(""))
		}
	}
}

// at is the broker of a grid, for anybody.
func at(g *peertest.Grid) end { return end{broker: g.Broker.MQTT} }

// end is a broker and as whom its clients come.
type end struct {
	broker netip.AddrPort
	as     peertest.MQTTLogin
}

func (e end) user(t *testing.T, filter string, on func(*paho.Publish)) *mqttClient {
	t.Helper()
	return mqttUserAs(t, e.broker, e.as, filter, on)
}

// retained is what a broker gives a new subscriber, as "topic payload", sorted: all is
// there when the retained message of another topic is that was asked for after.
func (e end) retained(t *testing.T, filter string) []string {
	t.Helper()
	last := "zz/" + strconv.FormatUint(rand.Uint64(), 36)
	c := e.user(t, filter, nil)
	c.put(t, &paho.Publish{Topic: last, QoS: 1, Retain: true, Payload: []byte(last)})
	if _, err := c.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: last, QoS: 2}}}); err != nil {
		t.Fatal(err)
	}
	c.await(t, last)
	var all []string
	for _, p := range c.messages() {
		if p.Topic != last {
			all = append(all, p.Topic+" "+string(p.Payload))
		}
	}
	c.put(t, &paho.Publish{Topic: last, QoS: 1, Retain: true}) // nobody else is to see it
	check(t, c.Disconnect(&paho.Disconnect{}))
	slices.Sort(all)
	return all
}

// awaitRetained waits until a broker retains just that below a filter.
func (e end) awaitRetained(t *testing.T, filter string, want ...string) {
	t.Helper()
	slices.Sort(want)
	var got []string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if got = e.retained(t, filter); slices.Equal(got, want) {
			return
		}
	}
	t.Fatalf("the broker has %q below %s, want %q", got, filter, want)
}
