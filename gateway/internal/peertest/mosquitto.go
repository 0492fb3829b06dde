package peertest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// MosquittoConfig says where a mosquitto runs and what it allows.
type MosquittoConfig struct {
	// Name is for errors.
	Name string
	// IP is the address that it listens on: port 1883 for plain MQTT, and with
	// Cert port 8883 for TLS.
	IP netip.Addr
	// Dir is a directory for configuration, data and logs. It is made if needed; a
	// broker started on the Dir of an earlier one carries on.
	Dir string
	// Users are the passwords of users by name; with none, everybody is let in.
	Users map[string]string
	// ACL is the text of an acl_file; empty: users may do everything.
	ACL string
	// Cert is a PEM file with key and certificate for TLS. ClientCA, where it is
	// set, is a PEM file of CAs by one of which clients must be certified.
	Cert, ClientCA string
	// NoPersistence keeps sessions and retained messages in memory alone.
	// Otherwise all is written to disk after each change, as far as mosquitto does.
	NoPersistence bool
	// Quiet writes no line to the log for each packet, which costs a broker more than
	// the packet.
	Quiet bool
	// Lines are added to the configuration, such as "max_inflight_messages 5".
	Lines []string
	// Netns is the namespace to run in; nil is that of this process.
	Netns *Netns
}

// Mosquitto is an MQTT broker. Its methods are for one goroutine at a time.
type Mosquitto struct {
	// MQTT is where it speaks plain MQTT, MQTTS where it speaks it over TLS.
	MQTT, MQTTS netip.AddrPort
	// Process is the broker's process, for memory, signals and its log.
	*Process

	cfg MosquittoConfig
}

// NewMosquitto prepares a mosquitto; Start starts it.
func NewMosquitto(cfg MosquittoConfig) (*Mosquitto, error) {
	if err := Need("mosquitto"); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("prepare mosquitto: %w", err)
	}
	cfg.Dir = dir
	m := &Mosquitto{MQTT: netip.AddrPortFrom(cfg.IP, 1883), MQTTS: netip.AddrPortFrom(cfg.IP, 8883),
		Process: &Process{Name: "mosquitto " + cfg.Name, Dir: dir, Log: filepath.Join(dir, "output.log")}}
	return m, m.Configure(cfg)
}

// BridgeLines are those of a bridge that gives what matches filter to another broker,
// with prefix before its topic, as one writes them who wants it to lose nothing.
func BridgeLines(to netip.AddrPort, filter, prefix string) []string {
	return []string{
		"connection far", "address " + to.String(), fmt.Sprintf(`topic %s out 2 "" %s`, filter, prefix), "bridge_protocol_version mqttv50",
		"cleansession false", "notifications false", "restart_timeout 1", "keepalive_interval 5",
	}
}

// Config is how the broker is configured.
func (m *Mosquitto) Config() MosquittoConfig { return m.cfg }

// Configure writes the broker's configuration anew. It takes effect at the next
// start. Name, IP and Dir stay what they are.
func (m *Mosquitto) Configure(cfg MosquittoConfig) error {
	if m.cfg.Dir != "" {
		cfg.Name, cfg.IP, cfg.Dir = m.cfg.Name, m.cfg.IP, m.cfg.Dir
	}
	m.cfg = cfg
	if err := m.configure(); err != nil {
		return fmt.Errorf("configure %s: %w", m.Name, err)
	}
	return nil
}

func (m *Mosquitto) configure() error {
	if err := os.MkdirAll(filepath.Join(m.cfg.Dir, "data"), 0o755); err != nil {
		return err
	}
	// As root it would become the user mosquitto, who may not enter Dir.
	logged := "all"
	if m.cfg.Quiet {
		logged = "error"
	}
	lines := []string{"user root", "log_dest file " + m.LogFile(), "log_type " + logged, "connection_messages true",
		fmt.Sprintf("allow_anonymous %v", len(m.cfg.Users) == 0)}
	if !m.cfg.NoPersistence {
		lines = append(lines, "persistence true", "persistence_location "+filepath.Join(m.cfg.Dir, "data")+"/",
			"autosave_on_changes true", "autosave_interval 1")
	}
	if len(m.cfg.Users) > 0 {
		if err := m.writeUsers(); err != nil {
			return err
		}
		lines = append(lines, "password_file "+m.file("passwd"))
	}
	if m.cfg.ACL != "" {
		if err := os.WriteFile(m.file("acl"), []byte(m.cfg.ACL), 0o600); err != nil {
			return err
		}
		lines = append(lines, "acl_file "+m.file("acl"))
	}
	lines = append(lines, m.cfg.Lines...)
	lines = append(lines, fmt.Sprintf("listener %d %s", m.MQTT.Port(), m.cfg.IP))
	if m.cfg.Cert != "" {
		lines = append(lines, fmt.Sprintf("listener %d %s", m.MQTTS.Port(), m.cfg.IP), "certfile "+m.cfg.Cert, "keyfile "+m.cfg.Cert)
		if m.cfg.ClientCA != "" {
			lines = append(lines, "cafile "+m.cfg.ClientCA, "require_certificate true")
		}
	}
	return os.WriteFile(m.file("mosquitto.conf"), []byte(strings.Join(lines, "\n")+"\n"), 0o600)
}

func (m *Mosquitto) writeUsers() error {
	if err := os.WriteFile(m.file("passwd"), nil, 0o600); err != nil {
		return err
	}
	for name, password := range m.cfg.Users {
		if out, err := exec.Command("mosquitto_passwd", "-b", m.file("passwd"), name, password).CombinedOutput(); err != nil {
			return fmt.Errorf("mosquitto_passwd: %w: %s", err, out)
		}
	}
	return nil
}

func (m *Mosquitto) file(name string) string { return filepath.Join(m.cfg.Dir, name) }

// LogFile is the file in which the broker says what it does.
func (m *Mosquitto) LogFile() string { return m.file("mosquitto.log") }

// Start starts the broker and returns when it answers a client.
func (m *Mosquitto) Start(ctx context.Context) error {
	m.Argv = m.cfg.Netns.wrap([]string{"mosquitto", "-c", m.file("mosquitto.conf")})
	if err := m.Process.Start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	if err := m.await(ctx, m.greet); err != nil {
		return errors.Join(err, m.Kill())
	}
	return nil
}

// Restart stops the broker if it runs and starts it on the same data.
func (m *Mosquitto) Restart(ctx context.Context) error {
	if err := m.Stop(); err != nil {
		return err
	}
	return m.Start(ctx)
}

// greetMQTT sends CONNECT and wants CONNACK, whatever is in it: without a user name a
// broker may refuse, but then it is there.
func greetMQTT(ctx context.Context, ns *Netns, broker netip.AddrPort) error {
	conn, err := ns.Dial(ctx, "tcp", broker.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00")); err != nil {
		return err
	}
	var answer [4]byte
	if _, err := conn.Read(answer[:]); err != nil {
		return err
	}
	if answer[0] != 0x20 {
		return fmt.Errorf("%s answered CONNECT with % x", broker, answer)
	}
	return nil
}

func (m *Mosquitto) greet(ctx context.Context) error {
	if err := greetMQTT(ctx, m.cfg.Netns, m.MQTT); err != nil {
		return err
	}
	if m.cfg.Cert == "" {
		return nil
	}
	tc, err := m.cfg.Netns.Dial(ctx, "tcp", m.MQTTS.String())
	if err != nil {
		return err
	}
	defer tc.Close()
	// Whom it presents, and whom it wants, is for others to judge.
	err = tls.Client(tc, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx)
	if err != nil && m.cfg.ClientCA == "" {
		return err
	}
	return nil
}
