// yggate is one static binary: everything here is Go alone and builds without cgo.
module github.com/yggate/yggate

go 1.26.3

// What the gateway is made of.
require (
	// The routing layer under yggdrasil-go, whose queues and callbacks we set.
	github.com/Arceliar/ironwood v0.0.0-20260613025018-d50055b11f5e
	// MQTT packets: version 5, and 3.1.1 for brokers that have no other. The sessions
	// are our own, because acknowledgements follow our commits.
	github.com/eclipse/paho.golang v0.23.0
	github.com/eclipse/paho.mqtt.golang v1.5.1
	// The frames of the lanes, decoded strictly and within bounds.
	github.com/fxamacker/cbor/v2 v2.10.0
	// DNS messages: the responder that leads the local server to the gateway.
	github.com/miekg/dns v1.1.66
	// Metrics for Prometheus, and their data type where they are gathered again
	// from the part of the gateway that runs at the time.
	github.com/prometheus/client_golang v1.25.0
	github.com/prometheus/client_model v0.6.3
	// The embedded Yggdrasil node.
	github.com/yggdrasil-network/yggdrasil-go v0.5.14
	// The configuration, with line numbers in errors.
	go.yaml.in/yaml/v3 v3.0.5
	// IDNA for domains, and a bound on connections; HTTP/2 frames for hostile tests.
	golang.org/x/net v0.62.0
	// errgroup for what runs side by side, semaphore and singleflight.
	golang.org/x/sync v0.24.0
	// The lock of the state directory; network namespaces in tests.
	golang.org/x/sys v0.49.0
	// Whether a person or a program reads what the commands print.
	golang.org/x/term v0.47.0
	// What a peer may do in a second.
	golang.org/x/time v0.16.0
	// TCP over Yggdrasil without a TUN device, and so without root.
	gvisor.dev/gvisor v0.0.0-20260905035102-160fafc42237
	// Matrix: signatures, canonical JSON, errors in its form; clients in tests.
	maunium.net/go/mautrix v0.27.0
	// The whole state in one file.
	modernc.org/sqlite v1.61.1
	// Invites to be read from a screen.
	rsc.io/qr v0.2.0
)

// What only tests, benchmarks and the demo import.
require (
	// The log that yggdrasil-go wants in the stock node.
	github.com/gologme/log v1.3.0
	// Scripts that run the commands as an operator does.
	github.com/rogpeppe/go-internal v1.14.1
	// The TUN device that the benchmark compares with.
	github.com/vishvananda/netlink v1.3.1
	// The tunnel that the benchmark compares with.
	golang.zx2c4.com/wireguard v0.0.0-20260522210424-ecfc5a8d5446
	// XMPP clients that talk to the real servers.
	mellium.im/sasl v0.3.2
	mellium.im/xmlstream v0.15.4
	mellium.im/xmpp v0.22.0
)

require (
	filippo.io/edwards25519 v1.2.0 // indirect
	github.com/Arceliar/phony v0.0.0-20220903101357-530938a4b13d // indirect
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/bits-and-blooms/bitset v1.24.5 // indirect
	github.com/bits-and-blooms/bloom/v3 v3.7.1 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/coder/websocket v1.8.15 // indirect
	github.com/dustin/go-humanize v1.1.0 // indirect
	github.com/google/btree v1.1.2 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/hjson/hjson-go/v4 v4.6.0 // indirect
	github.com/mattn/go-colorable v0.1.14 // indirect
	github.com/mattn/go-isatty v0.0.24 // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/ncruces/go-strftime v1.1.0 // indirect
	github.com/prometheus/common v0.72.0 // indirect
	github.com/prometheus/procfs v0.22.0 // indirect
	github.com/quic-go/quic-go v0.60.0 // indirect
	github.com/remyoudompheng/bigfft v0.0.0-20230129092748-24d4a6f8daec // indirect
	github.com/rs/xid v1.6.0 // indirect
	github.com/rs/zerolog v1.35.0 // indirect
	github.com/tidwall/gjson v1.18.0 // indirect
	github.com/tidwall/match v1.1.1 // indirect
	github.com/tidwall/pretty v1.2.1 // indirect
	github.com/tidwall/sjson v1.2.5 // indirect
	github.com/vishvananda/netns v0.0.5 // indirect
	github.com/wlynxg/anet v0.0.5 // indirect
	github.com/x448/float16 v0.8.4 // indirect
	go.mau.fi/util v0.9.8 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/exp v0.0.0-20260410095643-746e56fc9e2f // indirect
	golang.org/x/mod v0.42.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	golang.org/x/tools v0.52.0 // indirect
	golang.zx2c4.com/wintun v0.0.0-20230126152724-0fa3db229ce2 // indirect
	golang.zx2c4.com/wireguard/windows v1.0.1 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
	mellium.im/reader v0.1.0 // indirect
	modernc.org/libc v1.79.0 // indirect
	modernc.org/mathutil v1.7.1 // indirect
	modernc.org/memory v1.12.1 // indirect
)
