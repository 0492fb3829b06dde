package gateway

import (
	"context"
	"fmt"
	"os"
	"reflect"
	"strings"

	"github.com/yggate/yggate/gateway/admin"
	"github.com/yggate/yggate/gateway/config"
)

// reloadOn reads the configuration anew at each signal, until ctx is done.
func (g *gateway) reloadOn(ctx context.Context, signals <-chan os.Signal) error {
	for {
		select {
		case <-signals:
			if done, err := g.reload(ctx); err != nil {
				g.log.Error("configuration not reloaded: the old one stays", "err", err)
			} else {
				g.log.Info(done.Done, "next", done.Next)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// reload takes peers and limits from the configuration. A mistake in it changes
// nothing.
func (g *gateway) reload(ctx context.Context) (admin.Done, error) {
	g.reloading.Lock()
	defer g.reloading.Unlock()
	old := g.conf.Load()
	c, err := config.Load(old.Path)
	if err != nil {
		return admin.Done{}, fmt.Errorf("reload %s: %w", old.Path, err)
	}
	later := needRestart(old, c)
	next := *old
	next.PeerDefaults, next.Peers, next.Warnings = c.PeerDefaults, c.Peers, c.Warnings
	g.conf.Store(&next)
	if err := g.registry.Reload(ctx); err != nil {
		g.conf.Store(old)
		return admin.Done{}, fmt.Errorf("reload %s: %w", old.Path, err)
	}
	done := admin.Done{Done: "peers and limits are those of " + old.Path + " now", More: c.Warnings}
	if len(later) > 0 {
		done.Next = "restart the gateway for the changes of: " + strings.Join(later, ", ")
	}
	return done, nil
}

// needRestart names the changed sections that only a start reads.
func needRestart(old, new *config.Config) []string {
	var changed []string
	for _, s := range []struct {
		name string
		a, b any
	}{
		{"name", old.Name, new.Name}, {"state", old.State, new.State}, {"log", old.Log, new.Log},
		{"mesh", old.Mesh, new.Mesh}, {"xmpp", old.XMPP, new.XMPP}, {"matrix", old.Matrix, new.Matrix}, {"mqtt", old.MQTT, new.MQTT},
		{"metrics", old.Metrics, new.Metrics},
	} {
		if !reflect.DeepEqual(s.a, s.b) {
			changed = append(changed, s.name)
		}
	}
	return changed
}
