package gateway

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yggate/yggate/federation"
	"github.com/yggate/yggate/gateway/config"
)

// metricsOf returns the metrics of a gateway with all protocols, and their labels
// as the documentation writes them.
func metricsOf(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	if _, _, err := federation.CreateIdentity(dir); err != nil {
		t.Fatal(err)
	}
	src := fmt.Sprintf("name: a\nstate: %s\nxmpp: {domains: [a.grid], server: 127.0.0.1:5269, listen: 127.0.0.2:5269}\n"+
		"matrix: {server_names: [a.grid], server: http://127.0.0.1:8008, proxy: 127.0.0.2:8118}\n"+
		"mqtt: {broker: mqtt://127.0.0.1:1883}\n", dir)
	conf, err := config.Parse(filepath.Join(dir, "yggate.yaml"), []byte(src), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := federation.CreateKeyFile(conf.MeshKey()); err != nil {
		t.Fatal(err)
	}
	g := &gateway{log: slog.New(slog.DiscardHandler), started: time.Now(), role: plainFile{}, metrics: newMetrics()}
	g.conf.Store(conf)
	if err := g.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.store.Close(); err != nil {
			t.Error(err)
		}
	}()
	e, err := newEdge(t.Context(), g, 1)
	if err != nil {
		t.Fatal(err)
	}
	descs := make(chan *prometheus.Desc)
	go func() {
		defer close(descs)
		g.metrics.registry.Describe(descs)
		e.registry.Describe(descs)
	}()
	// A Desc tells its parts in no other way.
	parts := regexp.MustCompile(`fqName: "(yggate_\w+)".* constLabels: \{(\w*).*\}, variableLabels: \{(.*)\}\}`)
	all := map[string]string{}
	for d := range descs {
		if m := parts.FindStringSubmatch(d.String()); m != nil {
			all[m[1]] = strings.Join(strings.FieldsFunc(m[2]+","+m[3], func(r rune) bool { return r == ',' }), ", ")
		}
	}
	return all
}

// The documentation lists the metrics that there are, each with its labels, and its
// alerts and other pages name no others.
func TestMetricsAreDocumented(t *testing.T) {
	have := metricsOf(t)
	page, err := os.ReadFile(filepath.Join("..", "docs", "monitoring.md"))
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile("`(yggate_[a-z0-9_]+)`")
	listed := map[string]bool{}
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		if len(cells) < 5 {
			continue
		}
		for _, m := range name.FindAllStringSubmatch(cells[1], -1) {
			listed[m[1]] = true
			labels, ok := have[m[1]]
			if want := strings.TrimSpace(cells[2]); ok && sorted(labels) != sorted(want) {
				t.Errorf("monitoring.md: %s has the labels %q, documented are %q", m[1], labels, want)
			}
		}
	}
	for metric := range have {
		if !listed[metric] {
			t.Errorf("monitoring.md does not list %s", metric)
		}
	}
	pages, err := filepath.Glob(filepath.Join("..", "docs", "*.md"))
	if err != nil || len(pages) == 0 {
		t.Fatal("no documentation", err)
	}
	word := regexp.MustCompile(`\byggate_[a-z0-9_]*[a-z0-9]\b`)
	for _, p := range pages {
		text, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, metric := range word.FindAllString(string(text), -1) {
			if _, ok := have[metric]; !ok {
				t.Errorf("%s: there is no metric %s", filepath.Base(p), metric)
			}
		}
	}
}

func sorted(labels string) string {
	words := strings.Split(labels, ", ")
	slices.Sort(words)
	return strings.Join(words, ", ")
}
