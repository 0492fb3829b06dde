package setup

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestGuides(t *testing.T) {
	for _, c := range []struct {
		server, name string
		p            Params
	}{
		{Mosquitto, "mosquitto", Params{Broker: "mqtt://127.0.0.1:1883", State: "$grid/", User: "yggate"}},
		{Mosquitto, "mosquitto.open", Params{Broker: "mqtts://[::1]:8883", State: "$grid/"}},
		{EjabberdMQTT, "ejabberd-mqtt", Params{Broker: "mqtts://a.grid:8883", State: "grid-state/", User: "yggate@a.grid"}},
	} {
		g, err := For(c.server, c.p)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if _, err := g.WriteTo(&b); err != nil {
			t.Fatal(err)
		}
		golden(t, c.name+".txt", b.Bytes())
		for _, f := range g.Fragments {
			if strings.HasSuffix(f.File, ".yml") {
				if err := yaml.Unmarshal([]byte(f.Text), map[string]any{}); err != nil {
					t.Errorf("%s, %s: %v", c.server, f.File, err)
				}
			}
		}
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs; look at it, then run go test -update\n--- got\n%s", file, got)
	}
}

func TestUnfitParameters(t *testing.T) {
	for _, c := range []struct {
		server string
		p      Params
		want   string
	}{
		{Mosquitto, Params{}, "mqtt.broker"},
		{Mosquitto, Params{Broker: "mqtt://127.0.0.1:1883\nuser x", State: "$grid/"}, "mqtt.broker"},
		{Mosquitto, Params{Broker: "mqtt://127.0.0.1:1883", State: "$grid/", User: "a\ntopic #"}, "mqtt.user"},
		{EjabberdMQTT, Params{Broker: "mqtt://127.0.0.1:1883", State: "$grid/", User: "yggate"}, "yggate@a.grid"},
		{EjabberdMQTT, Params{Broker: "mqtt://127.0.0.1:1883", State: "$grid/"}, "yggate@a.grid"},
		{EjabberdMQTT, Params{Broker: "mqtt://127.0.0.1:1883", State: "$grid/", User: "yggate@a.grid"}, "mqtt.state"},
		{Mosquitto, Params{Broker: "mqtt://127.0.0.1:1883", State: "up\ntopic #/"}, "mqtt.state"},
		{"emqx", Params{Broker: "mqtt://127.0.0.1:1883", State: "$grid/"}, "mosquitto, ejabberd-mqtt"},
	} {
		if _, err := For(c.server, c.p); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %+v: %v, want %q", c.server, c.p, err, c.want)
		}
	}
}
