package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/yggdrasil-network/yggdrasil-go/src/config"
	"github.com/yggdrasil-network/yggdrasil-go/src/core"

	"github.com/yggate/yggate/transports"
	"github.com/yggate/yggate/transports/ygg"
)

// kind is one way in which a node comes to another. build returns the two and
// what tells when a peering of the joining one came up; it may be there yet.
type kind struct {
	name  string
	build func(*world) (joiner, other *node, up <-chan time.Time, err error)
}

// In a tree of Yggdrasil nodes the lowest key is the root. Where nothing is said
// of keys they are random, and a relay has the lowest.
var cases = []kind{
	{"direct", func(w *world) (*node, *node, <-chan time.Time, error) {
		keys := newKeys(2)
		uri := newURI()
		other, err := w.start(keys[rand2()], ygg.Config{Listen: []string{uri}})
		if err != nil {
			return nil, nil, nil, err
		}
		pause()
		return w.join(keys, other, uri)
	}},
	{"direct, restarted", func(w *world) (*node, *node, <-chan time.Time, error) {
		keys := newKeys(2)
		uri := newURI()
		other, err := w.start(keys[rand2()], ygg.Config{Listen: []string{uri}})
		if err != nil {
			return nil, nil, nil, err
		}
		return w.rejoin(keys, other, uri)
	}},
	{"stock relay", func(w *world) (*node, *node, <-chan time.Time, error) {
		keys := newKeys(3)
		uri := newURI()
		other, err := w.behind(keys[0], keys[1+rand2()], uri)
		if err != nil {
			return nil, nil, nil, err
		}
		return w.join(keys[1:], other, uri)
	}},
	{"stock relay, restarted", func(w *world) (*node, *node, <-chan time.Time, error) {
		keys := newKeys(3)
		uri := newURI()
		other, err := w.behind(keys[0], keys[1+rand2()], uri)
		if err != nil {
			return nil, nil, nil, err
		}
		return w.rejoin(keys[1:], other, uri)
	}},
	{"stock relay, reconnected", func(w *world) (*node, *node, <-chan time.Time, error) {
		keys := newKeys(3)
		uri := newURI()
		other, err := w.behind(keys[0], keys[1+rand2()], uri)
		if err != nil {
			return nil, nil, nil, err
		}
		return w.reconnect(keys[1:], other, uri)
	}},
	{"stock relay, new root", func(w *world) (*node, *node, <-chan time.Time, error) {
		keys := newKeys(3)
		uri := newURI()
		other, err := w.behind(keys[1], keys[2], uri)
		if err != nil {
			return nil, nil, nil, err
		}
		return w.join(keys[:1], other, uri)
	}},
	{"stock relay, new root restarted", func(w *world) (*node, *node, <-chan time.Time, error) {
		keys := newKeys(3)
		uri := newURI()
		other, err := w.behind(keys[1], keys[2], uri)
		if err != nil {
			return nil, nil, nil, err
		}
		return w.rejoin(keys[:1], other, uri)
	}},
}

// world is what one trial starts.
type world struct {
	ctx   context.Context
	wg    sync.WaitGroup
	cores []*core.Core
}

func (w *world) stop() {
	w.wg.Wait()
	for _, c := range w.cores {
		c.Stop()
	}
}

// behind starts a stock relay and a node of ours that has found its place behind
// it.
func (w *world) behind(relay, key ed25519.PrivateKey, uri string) (*node, error) {
	cfg := config.NodeConfig{PrivateKey: config.KeyBytes(relay)}
	if err := cfg.GenerateSelfSignedCertificate(); err != nil {
		return nil, err
	}
	c, err := core.New(cfg.Certificate, nil)
	if err != nil {
		return nil, err
	}
	w.cores = append(w.cores, c)
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	if _, err := c.Listen(u, ""); err != nil {
		return nil, err
	}
	other, err := w.start(key, ygg.Config{Peers: []string{uri}})
	if err != nil {
		return nil, err
	}
	// The relay answers no stream, but has seen the node once it knows its place.
	for began := time.Now(); len(c.GetTree()) < 2; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > giveUp {
			return nil, errors.New("a node finds no place behind the relay")
		}
	}
	time.Sleep(2 * time.Second)
	pause()
	return other, nil
}

// join starts the node whose key of the two is not the other's.
func (w *world) join(keys []ed25519.PrivateKey, other *node, uri string) (*node, *node, <-chan time.Time, error) {
	joiner, err := w.start(other.not(keys), ygg.Config{Peers: []string{uri}})
	if err != nil {
		return nil, nil, nil, err
	}
	return joiner, other, joiner.up, nil
}

// rejoin has the node join, talk and crash before it joins again.
func (w *world) rejoin(keys []ed25519.PrivateKey, other *node, uri string) (*node, *node, <-chan time.Time, error) {
	first, _, _, err := w.join(keys, other, uri)
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithTimeout(w.ctx, giveUp)
	defer cancel()
	if err := errors.Join(first.reach(ctx, other), other.reach(ctx, first)); err != nil {
		return nil, nil, nil, err
	}
	// Session openings carry the second; a node rarely crashes in that of its own.
	time.Sleep(time.Second)
	pause()
	// As in a crash: what it says at its end reaches nobody.
	if err := first.RemovePeer(uri); err != nil {
		return nil, nil, nil, err
	}
	first.stop()
	pause()
	return w.join(keys, other, uri)
}

// reconnect has the node lose its peering and find it again.
func (w *world) reconnect(keys []ed25519.PrivateKey, other *node, uri string) (*node, *node, <-chan time.Time, error) {
	joiner, _, up, err := w.join(keys, other, uri)
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithTimeout(w.ctx, giveUp)
	defer cancel()
	if err := joiner.reach(ctx, other); err != nil {
		return nil, nil, nil, err
	}
	<-up
	if err := joiner.RemovePeer(uri); err != nil {
		return nil, nil, nil, err
	}
	for joiner.Status().Up {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(time.Second)
	pause()
	joiner.again()
	return joiner, other, joiner.up, joiner.AddPeer(uri)
}

// node is one of ours, with a service.
type node struct {
	*ygg.Node
	key  ed25519.PrivateKey
	up   chan time.Time
	was  atomic.Bool
	stop func()
}

const port = 7

func (w *world) start(key ed25519.PrivateKey, cfg ygg.Config) (*node, error) {
	n := &node{key: key, up: make(chan time.Time, 1)}
	cfg.Key = key
	cfg.Accept = func(transports.Addr) bool { return true }
	cfg.OnPeering = func() {
		if n.Status().Up && !n.was.Swap(true) {
			n.up <- time.Now()
		}
	}
	var err error
	if n.Node, err = ygg.New(cfg); err != nil {
		return nil, err
	}
	l, err := n.Listen(port)
	if err != nil {
		return nil, err
	}
	go serve(l)
	ctx, cancel := context.WithCancel(w.ctx)
	done := make(chan struct{})
	w.wg.Go(func() {
		defer close(done)
		if err := n.Run(ctx); err != nil {
			log.Print(err)
		}
	})
	n.stop = func() { cancel(); <-done }
	return n, nil
}

// again makes the next peering be told.
func (n *node) again() { n.was.Store(false) }

// not is the one of keys that is not the node's.
func (n *node) not(keys []ed25519.PrivateKey) ed25519.PrivateKey {
	i := slices.IndexFunc(keys, func(k ed25519.PrivateKey) bool { return !k.Equal(n.key) })
	return keys[i]
}

// reach opens a stream and has a byte come back through it.
func (n *node) reach(ctx context.Context, to *node) error {
	addr := to.Self()
	addr.Port = port
	c, err := n.Dial(ctx, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write([]byte{1}); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}

func serve(l transports.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c) // the dialling side tells
		}()
	}
}

// newKeys returns keys, the lowest first.
func newKeys(n int) []ed25519.PrivateKey {
	keys := make([]ed25519.PrivateKey, n)
	for i := range keys {
		_, keys[i], _ = ed25519.GenerateKey(nil) // cannot fail with the default reader
	}
	slices.SortFunc(keys, func(a, b ed25519.PrivateKey) int {
		return bytes.Compare(a[ed25519.SeedSize:], b[ed25519.SeedSize:])
	})
	return keys
}

var hosts atomic.Int32

// newURI is a peering URI that no other trial has.
func newURI() string {
	n := hosts.Add(1)
	return fmt.Sprintf("tcp://127.77.%d.%d:9000", n/250, 1+n%250)
}
