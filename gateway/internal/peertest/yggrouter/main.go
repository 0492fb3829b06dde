// Command yggrouter is a stock Yggdrasil 0.5 node that only routes: the core of
// yggdrasil-go as it is, without a TUN device, for tests in which two gateways
// meet through a third party's node.
package main

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/gologme/log"
	"github.com/yggdrasil-network/yggdrasil-go/src/config"
	"github.com/yggdrasil-network/yggdrasil-go/src/core"
)

type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	var listen, peers list
	flag.Var(&listen, "listen", "`URI` to listen on; may be given several times")
	flag.Var(&peers, "peer", "peering `URI` to connect to; may be given several times")
	keyFile := flag.String("key", "", "`FILE` of the node key in hex; made if there is none")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, listen, peers, *keyFile); err != nil {
		fmt.Fprintln(os.Stderr, "yggrouter:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, listen, peers []string, keyFile string) error {
	key, err := nodeKey(keyFile)
	if err != nil {
		return err
	}
	cfg := config.GenerateConfig()
	cfg.PrivateKey = config.KeyBytes(key)
	if err := cfg.GenerateSelfSignedCertificate(); err != nil {
		return fmt.Errorf("make certificate: %w", err)
	}
	logger := log.New(os.Stderr, "", log.Flags())
	for _, level := range []string{"error", "warn", "info"} {
		logger.EnableLevel(level)
	}
	var opts []core.SetupOption
	for _, uri := range listen {
		opts = append(opts, core.ListenAddress(uri))
	}
	for _, uri := range peers {
		opts = append(opts, core.Peer{URI: uri})
	}
	node, err := core.New(cfg.Certificate, logger, opts...)
	if err != nil {
		return fmt.Errorf("start node: %w", err)
	}
	fmt.Println("key", hex.EncodeToString(node.PublicKey()))
	<-ctx.Done()
	node.Stop()
	return nil
}

func nodeKey(file string) (ed25519.PrivateKey, error) {
	if file == "" {
		_, key, err := ed25519.GenerateKey(nil)
		return key, err
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		_, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			return nil, err
		}
		return key, os.WriteFile(file, []byte(hex.EncodeToString(key)+"\n"), 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("read node key: %w", err)
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("read node key: %s does not hold %d bytes in hex", file, ed25519.PrivateKeySize)
	}
	return key, nil
}
