package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/gologme/log"
	"github.com/vishvananda/netlink"
	"github.com/yggdrasil-network/yggdrasil-go/src/core"
	"github.com/yggdrasil-network/yggdrasil-go/src/ipv6rwc"
	"github.com/yggdrasil-network/yggdrasil-go/src/tun"
)

// The subject with TUN devices is two processes of this program, each in a
// network namespace of its own, joined by a veth pair. A helper holds a stock
// node with TUN at its default MTU, and the stream's end, so that its CPU time
// is that of the whole end, less what the kernel does in interrupts.
//
// Parent and helpers speak lines of JSON over stdin and stdout.

// helperFlag, as the first argument, makes this program a helper.
const helperFlag = "tun-helper"

// veth addresses of the helpers, inside their namespaces only.
var vethIP = [2]string{"10.0.0.1", "10.0.0.2"}

type order struct {
	Peer    int    `json:",omitempty"` // pid whose namespace gets the veth's other end
	Connect bool   `json:",omitempty"` // start the node; number 1 dials number 0
	Target  string `json:",omitempty"` // measure streams to this address
	Limits  limits `json:",omitzero"`
}

type report struct {
	Addr   string        `json:",omitempty"`
	Sample sample        `json:",omitzero"`
	Bytes  int64         `json:",omitempty"`
	CPU    time.Duration `json:",omitempty"`
	Err    string        `json:",omitempty"`
}

type helper struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

func startHelper(number int) (*helper, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, helperFlag, strconv.Itoa(number))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start in a network namespace (needs root): %w", err)
	}
	return &helper{cmd: cmd, in: in, out: json.NewDecoder(bufio.NewReader(out))}, nil
}

func (h *helper) ask(o order) (report, error) {
	var r report
	if err := json.NewEncoder(h.in).Encode(o); err != nil {
		return r, err
	}
	if err := h.out.Decode(&r); err != nil {
		return r, fmt.Errorf("helper: %w", err)
	}
	if r.Err != "" {
		return r, errors.New(r.Err)
	}
	return r, nil
}

// tunPair is the subject.
type tunPair struct {
	helpers [2]*helper
	target  string
}

func newTUN() (subject, error) {
	p := &tunPair{}
	for i := range p.helpers {
		h, err := startHelper(i)
		if err != nil {
			return nil, errors.Join(err, p.Close())
		}
		p.helpers[i] = h
	}
	if _, err := p.helpers[0].ask(order{Peer: p.helpers[1].cmd.Process.Pid}); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	for i, h := range p.helpers {
		r, err := h.ask(order{Connect: true})
		if err != nil {
			return nil, errors.Join(err, p.Close())
		}
		if i == 0 {
			p.target = r.Addr
		}
	}
	return p, nil
}

// Close ends the helpers by closing their stdin; their namespaces go with them.
func (p *tunPair) Close() error {
	var errs []error
	for _, h := range p.helpers {
		if h != nil {
			errs = append(errs, h.in.Close(), h.cmd.Wait())
		}
	}
	return errors.Join(errs...)
}

func (p *tunPair) measure(lim limits) (sample, error) {
	before, err := p.helpers[0].ask(order{})
	if err != nil {
		return sample{}, err
	}
	r, err := p.helpers[1].ask(order{Target: p.target, Limits: lim})
	if err != nil {
		return sample{}, err
	}
	after, err := p.helpers[0].ask(order{})
	if err != nil {
		return sample{}, err
	}
	// The server's share contains the round trips too, which are a few
	// milliseconds of CPU.
	r.Sample.CPUPerGB = (r.CPU + after.CPU - before.CPU).Seconds() / (float64(r.Bytes) / 1e9)
	return r.Sample, nil
}

// runHelper is the helper's main.
func runHelper(number int) error {
	orders, reports := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := orders.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		r, err := obey(number, o)
		if err != nil {
			r.Err = err.Error()
		}
		if err := reports.Encode(r); err != nil {
			return err
		}
	}
}

func obey(number int, o order) (report, error) {
	switch {
	case o.Peer != 0:
		return report{}, netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: "veth0", MTU: 1500}, PeerName: "veth0", PeerNamespace: netlink.NsPid(o.Peer),
		})
	case o.Connect:
		addr, err := startTUN(number)
		return report{Addr: addr}, err
	case o.Target != "":
		return measureTUN(o)
	}
	cpu, err := cpuTime()
	return report{CPU: cpu}, err
}

func measureTUN(o order) (r report, err error) {
	dial := func() (net.Conn, error) { return net.DialTimeout("tcp", o.Target, setupTime) }
	before, err := cpuTime()
	if err != nil {
		return r, err
	}
	n, took, err := throughput(dial, o.Limits)
	if err != nil {
		return r, err
	}
	after, err := cpuTime()
	if err != nil {
		return r, err
	}
	r.Bytes, r.CPU = n, after-before
	r.Sample.MBps = float64(n) / 1e6 / took.Seconds()
	r.Sample.P50, r.Sample.P99, err = latency(dial, o.Limits)
	return r, err
}

// startTUN brings up the namespace's interfaces, a node and the server.
func startTUN(number int) (string, error) {
	for _, name := range []string{"lo", "veth0"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return "", err
		}
		if name != "lo" {
			ip := net.ParseIP(vethIP[number])
			if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(24, 32)}}); err != nil {
				return "", err
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return "", err
		}
	}
	c, err := stockNode()
	if err != nil {
		return "", err
	}
	quiet := log.New(io.Discard, "", 0)
	if _, err := tun.New(ipv6rwc.NewReadWriteCloser(c), quiet, tun.InterfaceName("ygg0"), tun.InterfaceMTU(65535)); err != nil {
		return "", fmt.Errorf("create TUN device: %w", err)
	}
	if err := join(c, number); err != nil {
		return "", err
	}
	l, err := net.Listen("tcp", net.JoinHostPort("::", strconv.Itoa(port)))
	if err != nil {
		return "", err
	}
	go serve(l)
	return net.JoinHostPort(c.Address().String(), strconv.Itoa(port)), nil
}

func join(c *core.Core, number int) error {
	u := &url.URL{Scheme: "tcp", Host: net.JoinHostPort(vethIP[0], "9000")}
	if number == 0 {
		_, err := c.Listen(u, "")
		return err
	}
	return c.AddPeer(u, "")
}
