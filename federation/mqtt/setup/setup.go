// Package setup holds the lines that an operator adds to an MQTT broker so that yggate
// is one of its clients. The tests run mosquitto and ejabberd with just these fragments.
package setup

import (
	"embed"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/yggate/yggate/federation/guide"
)

// The brokers that For knows.
const (
	Mosquitto = "mosquitto"
	// EjabberdMQTT is the MQTT broker of ejabberd (mod_mqtt).
	EjabberdMQTT = "ejabberd-mqtt"
)

// Servers lists them, for usage texts.
func Servers() []string { return []string{Mosquitto, EjabberdMQTT} }

// Params is what the fragments depend on.
type Params struct {
	// Broker is its URL, as the configuration has it.
	Broker string
	// User is as whom yggate comes; empty: the broker does not ask.
	User string
	// State is the beginning of the topics that tell where peers stand.
	State string
}

// Port is that of the broker.
func (p Params) Port() string { return p.Broker[strings.LastIndexByte(p.Broker, ':')+1:] }

// TLS says whether yggate connects by it.
func (p Params) TLS() bool { return strings.HasPrefix(p.Broker, "mqtts://") }

// JID returns the user and the host that ejabberd knows yggate by.
func (p Params) JID() (parts []string) {
	user, host, _ := strings.Cut(p.User, "@")
	return []string{user, host}
}

var (
	fitBroker = regexp.MustCompile(`^mqtts?://[0-9A-Za-z.\-:\[\]]+:[0-9]{1,5}$`)
	fitState  = regexp.MustCompile(`^[0-9A-Za-z._$/-]+/$`)
	fitUser   = regexp.MustCompile(`^[0-9A-Za-z._@-]+$`)
)

// Validate says what is missing or unfit.
func (p Params) Validate() error {
	var errs []error
	if !fitBroker.MatchString(p.Broker) {
		errs = append(errs, fmt.Errorf("broker %.80q: want mqtt://HOST:PORT (mqtt.broker)", p.Broker))
	}
	if p.User != "" && !fitUser.MatchString(p.User) {
		errs = append(errs, fmt.Errorf("user %.80q: want a name of the characters A-Z, a-z, 0-9, ., _, @ and - (mqtt.user)", p.User))
	}
	if !fitState.MatchString(p.State) {
		errs = append(errs, fmt.Errorf("state %.80q: want the beginning of topics, of the characters A-Z, a-z, 0-9, ., _, $, - and / (mqtt.state)", p.State))
	}
	return errors.Join(errs...)
}

//go:embed mosquitto ejabberd-mqtt
var files embed.FS

var templates = guide.Templates{Files: files}

// For returns the guide for a broker, one of Servers. It fails on an unknown broker, and
// on parameters that Validate refuses.
func For(server string, p Params) (*guide.Guide, error) {
	if !slices.Contains(Servers(), server) {
		return nil, fmt.Errorf("set up %q: unknown broker, want one of %s", server, strings.Join(Servers(), ", "))
	}
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("set up %s: %w", server, err)
	}
	if jid := p.JID(); server == EjabberdMQTT && (jid[0] == "" || jid[1] == "") {
		return nil, fmt.Errorf("set up %s: it knows its clients by address: set mqtt.user to one such as yggate@a.grid", server)
	}
	if server == EjabberdMQTT && p.State[0] == '$' {
		return nil, fmt.Errorf("set up %s: it takes nothing that begins with $: set mqtt.state to another beginning, such as grid-state/", server)
	}
	return templates.Guide(server, p)
}
