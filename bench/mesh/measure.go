package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"time"
)

// limits bound one sample.
type limits struct {
	Bytes   int64
	Seconds float64
}

// sample is what one look at a subject gave.
type sample struct {
	MBps     float64 // 10^6 bytes a second, one stream, one way
	CPUPerGB float64 // CPU seconds of both ends for 10^9 bytes
	P50, P99 time.Duration
}

// The first byte of a stream says what the server does with the rest.
const (
	sink = 'T' // count until the end, answer with the count
	echo = 'L' // send back what comes
)

const (
	pingSize = 64
	maxPings = 3000
)

// serve answers streams until the listener is closed.
func serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			// A stream that fails is the client's to report.
			_ = serveStream(c)
		}()
	}
}

func serveStream(c net.Conn) error {
	var kind [1]byte
	if _, err := io.ReadFull(c, kind[:]); err != nil {
		return err
	}
	if kind[0] == echo {
		_, err := io.CopyBuffer(struct{ io.Writer }{c}, struct{ io.Reader }{c}, make([]byte, 4096))
		return err
	}
	buf, n := make([]byte, 256<<10), int64(0)
	for {
		k, err := c.Read(buf)
		n += int64(k)
		if errors.Is(err, io.EOF) {
			_, err = c.Write(binary.BigEndian.AppendUint64(nil, uint64(n)))
			return err
		}
		if err != nil {
			return err
		}
	}
}

// throughput sends for as long as the limits allow and waits until the far end
// has it all.
func throughput(dial func() (net.Conn, error), lim limits) (bytes int64, took time.Duration, err error) {
	c, err := dial()
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return 0, 0, err
	}
	if _, err := c.Write([]byte{sink}); err != nil {
		return 0, 0, err
	}
	buf, began := make([]byte, 128<<10), time.Now()
	for bytes < lim.Bytes && time.Since(began).Seconds() < lim.Seconds {
		n, err := c.Write(buf)
		bytes += int64(n)
		if err != nil {
			return 0, 0, fmt.Errorf("after %d bytes: %w", bytes, err)
		}
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return 0, 0, err
	}
	var count [8]byte
	if _, err := io.ReadFull(c, count[:]); err != nil {
		return 0, 0, fmt.Errorf("wait for the count: %w", err)
	}
	if got := int64(binary.BigEndian.Uint64(count[:])); got != bytes {
		return 0, 0, fmt.Errorf("%d bytes sent, %d arrived", bytes, got)
	}
	return bytes, time.Since(began), nil
}

// latency measures round trips of small messages on an idle stream.
func latency(dial func() (net.Conn, error), lim limits) (p50, p99 time.Duration, err error) {
	c, err := dial()
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return 0, 0, err
	}
	if _, err := c.Write([]byte{echo}); err != nil {
		return 0, 0, err
	}
	buf, began := make([]byte, pingSize), time.Now()
	var rtts []time.Duration
	for len(rtts) < maxPings && time.Since(began).Seconds() < lim.Seconds/3 {
		at := time.Now()
		if _, err := c.Write(buf); err != nil {
			return 0, 0, err
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return 0, 0, err
		}
		rtts = append(rtts, time.Since(at))
	}
	slices.Sort(rtts)
	return rtts[len(rtts)/2], rtts[len(rtts)*99/100], nil
}

// cpuTime is what this process has used.
func cpuTime() (time.Duration, error) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()), nil
}

// median of each figure by itself.
func median(ss []sample) sample {
	pick := func(f func(sample) float64) float64 {
		v := make([]float64, len(ss))
		for i, s := range ss {
			v[i] = f(s)
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	return sample{
		MBps:     pick(func(s sample) float64 { return s.MBps }),
		CPUPerGB: pick(func(s sample) float64 { return s.CPUPerGB }),
		P50:      time.Duration(pick(func(s sample) float64 { return float64(s.P50) })),
		P99:      time.Duration(pick(func(s sample) float64 { return float64(s.P99) })),
	}
}
