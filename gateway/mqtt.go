package gateway

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"net/url"
	"slices"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/federation/mqtt"
	"github.com/yggate/yggate/federation/mqtt/session"
	"github.com/yggate/yggate/federation/mqtt/session/disk"
	"github.com/yggate/yggate/gateway/admin"
	"github.com/yggate/yggate/gateway/config"
)

// mqttEdge is what of an edge is MQTT's.
type mqttEdge struct {
	adapter *mqtt.Adapter
	session *session.Session
}

// newMQTT builds the MQTT part of an edge.
func (e *edge) newMQTT(ctx context.Context, conf *config.Config) error {
	m, out := conf.MQTT, &mqttEdge{}
	cfg, err := brokerOf(m)
	if err != nil {
		return err
	}
	if out.adapter, err = mqtt.New(mqtt.Config{
		Directory: e.g.registry.Directory(), Self: e.g.identity.ID(), Store: e.g.store, Share: m.Share, State: m.State,
		Link: e.linkState, Log: e.g.log, Metrics: e.registry,
	}); err != nil {
		return err
	}
	if cfg.ClientID == "" {
		cfg.ClientID = "yggate" + e.g.identity.ID().Short() // what each broker has to take (MQTT 3.1.1 §3.1.3.1)
	}
	cfg.Handler, cfg.Journal, cfg.Will = out.adapter, disk.Journal{Store: e.g.store}, out.adapter.Will()
	cfg.Log, cfg.Metrics = e.g.log, e.registry
	if out.session, err = session.New(ctx, cfg); err != nil {
		return err
	}
	e.mqtt = out
	e.explain[federation.MQTT] = out.adapter.Explain
	return nil
}

// brokerOf says how to reach the broker.
func brokerOf(m *config.MQTT) (session.Config, error) {
	u, err := url.Parse(m.Broker)
	if err != nil {
		return session.Config{}, fmt.Errorf("mqtt.broker: %w", err)
	}
	cfg := session.Config{
		Addr: u.Host, ClientID: m.ClientID, Username: m.User, Password: m.Password, MaxPacket: uint32(m.MaxPacket),
		Version: map[string]byte{"5": session.V5, "3.1.1": session.V311}[m.Version],
	}
	if u.Scheme != "mqtts" {
		return cfg, nil
	}
	cfg.TLS = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: u.Hostname()}
	if m.CA != "" {
		if cfg.TLS.RootCAs, err = readRoots(m.CA); err != nil {
			return cfg, fmt.Errorf("mqtt.ca: %w", err)
		}
	}
	if m.Cert != "" {
		pair, err := tls.LoadX509KeyPair(m.Cert, m.Key)
		if err != nil {
			return cfg, fmt.Errorf("mqtt.cert and mqtt.key: %w", err)
		}
		cfg.TLS.Certificates = []tls.Certificate{pair}
	}
	return cfg, nil
}

// run is both parts: the session lasts a moment longer than the adapter, which takes
// leave of the broker's other clients.
func (m *mqttEdge) run(ctx context.Context) error {
	within, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	ended := make(chan error, 1)
	adapting, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		ended <- m.session.Run(within)
		stop()
	}()
	err := m.adapter.Run(adapting)
	leaving, left := context.WithTimeout(within, mqtt.FarewellTime)
	defer left()
	if ctx.Err() != nil && m.session.Status().Connected {
		m.adapter.Farewell(leaving)
	}
	cancel()
	if sessionErr := <-ended; err == nil {
		err = sessionErr
	}
	return err
}

// mqttStatus is what there is to see of MQTT.
func (g *gateway) mqttStatus(m *mqttEdge) *admin.MQTT {
	st := m.session.Status()
	out := &admin.MQTT{
		Broker: g.conf.Load().MQTT.Broker, Connected: st.Connected, Since: st.Since, Problem: st.LastError,
		InFlight: st.InFlight, Waiting: st.Waiting, Unacked: st.Unacked, Refused: st.Refused, Peers: []admin.MQTTPeer{},
	}
	if st.Connected {
		out.Version = map[byte]string{session.V5: "5", session.V311: "3.1.1"}[st.Info.Version]
		out.Problem = ""
	}
	for _, p := range m.adapter.Peers() {
		out.Peers = append(out.Peers, admin.MQTTPeer{
			Peer: p.Peer, Exports: p.Exports, Imports: p.Imports, Waiting: p.Waiting, Full: p.Full, Overflow: p.Overflow,
		})
	}
	return out
}

// describeMQTT is what the configuration says of a peer.
func describeMQTT(p *federation.MQTTPolicy) *admin.MQTTPolicy {
	rules := func(all []federation.MQTTRule) []admin.MQTTRule {
		out := []admin.MQTTRule{}
		for _, r := range all {
			out = append(out, admin.MQTTRule(r))
		}
		return out
	}
	return &admin.MQTTPolicy{
		Exports: rules(p.Exports), Imports: rules(p.Imports), Overflow: string(cmp.Or(p.Overflow, federation.OverflowBlock)), Rate: p.Rate, TTL: p.TTL,
	}
}

// warnOfMQTT warns of what keeps topics from crossing.
func warnOfMQTT(m *admin.MQTT, add func(format string, args ...any)) {
	if m == nil {
		return
	}
	refused := slices.Sorted(maps.Keys(m.Refused))
	if !m.Connected {
		add("the MQTT broker %s is not connected: %s", m.Broker, m.Problem)
		refused = nil // what it said before may not hold any more
	}
	for _, f := range refused {
		add("the MQTT broker refuses the subscription %s, and nothing of it crosses: %s; give the gateway's user the right to read it (`yggate setup mosquitto` prints an ACL), and it is taken up by itself", f, m.Refused[f])
	}
	for _, p := range m.Peers {
		if !p.Full.IsZero() {
			add("as much waits for %s over MQTT as may (overflow: %s): `yggate outbox list %s`, and limits in the configuration", p.Peer, p.Overflow, p.Peer)
		}
	}
}
