package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/yggate/yggate/gateway/internal/peertest"
)

// sensors is what an operator writes under peer_defaults for the sensor: the same on
// both sides, of which one has something to tell.
const sensors = `  mqtt:
    export: [{filter: "sensors/#"}]
    import: [{filter: "sensors/#", to: "grid/{peer}/"}]
`

// temperature is where the sensor of grid a publishes, seen where grid b finds that.
const (
	temperature = "sensors/kitchen/temperature"
	seen        = "grid/a/" + temperature
	state       = "$grid/a/state"
)

// lineWithin bounds how long a line of a subscriber may take.
const lineWithin = time.Minute

// measure lets a sensor of a be seen by a subscriber of b, also when a is away.
func (s *stage) measure(ctx context.Context, a, b *peertest.Grid) error {
	sub, err := s.subscribe(ctx, b, "grid/a/sensors/#", "$grid/+/state")
	if err != nil {
		return err
	}
	defer sub.end()
	return s.readings(ctx, a, b, sub)
}

func (s *stage) readings(ctx context.Context, a, b *peertest.Grid, sub *subscriber) error {
	if err := sub.await(state + " online"); err != nil {
		return err
	}
	if err := s.publish(ctx, a, "21.5"); err != nil {
		return err
	}
	if err := sub.await(seen + " 21.5"); err != nil {
		return err
	}
	s.act("A subscriber that comes later finds what is retained on b")
	if err := s.find(ctx, b, seen+" 21.5"); err != nil {
		return err
	}
	s.act("The yggate of a stops: b's broker says so. The sensor goes on")
	s.say("  a$ kill -TERM PID")
	if err := a.Gateway.Stop(); err != nil {
		return err
	}
	if err := sub.await(state + " offline"); err != nil {
		return err
	}
	if err := s.publish(ctx, a, "19.0"); err != nil {
		return err
	}
	s.command(a.Name, []string{"serve", "&"})
	if err := a.Gateway.Start(ctx); err != nil {
		return err
	}
	if err := sub.await(state+" online", seen+" 19.0"); err != nil {
		return err
	}
	_, err := a.AwaitUp(ctx, b.Name)
	return err
}

// publish is the sensor.
func (s *stage) publish(ctx context.Context, g *peertest.Grid, value string) error {
	args := []string{"-q", "1", "-r", "-t", temperature, "-m", value}
	s.client(g, "mosquitto_pub", args)
	if out, err := exec.CommandContext(ctx, "mosquitto_pub", append(at(g), args...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("publish at %s: %w: %s", g.Name, err, out)
	}
	return nil
}

// find asks for the one retained message below grid/.
func (s *stage) find(ctx context.Context, g *peertest.Grid, want string) error {
	ctx, cancel := context.WithTimeout(ctx, lineWithin)
	defer cancel()
	args := []string{"-v", "-C", "1", "--retained-only", "-t", "grid/#"}
	s.client(g, "mosquitto_sub", args)
	out, err := exec.CommandContext(ctx, "mosquitto_sub", append(at(g), args...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("subscribe at %s: %w: %s", g.Name, err, out)
	}
	got := strings.TrimSpace(string(out))
	s.heard(g, got)
	if got != want {
		return fmt.Errorf("broker of %s retains %q, want %q", g.Name, got, want)
	}
	return nil
}

// at says to a client of mosquitto where the broker is.
func at(g *peertest.Grid) []string {
	return []string{"-h", g.Broker.MQTT.Addr().String(), "-p", strconv.Itoa(int(g.Broker.MQTT.Port())), "-V", "5"}
}

// client shows what somebody with a client would type.
func (s *stage) client(g *peertest.Grid, program string, args []string) {
	quoted := make([]string, len(args))
	for i, arg := range args {
		if quoted[i] = arg; strings.ContainsAny(arg, "$#") {
			quoted[i] = "'" + arg + "'"
		}
	}
	s.say("  %s$ %s -h %s %s", g.Name, program, g.Broker.MQTT.Addr(), strings.Join(quoted, " "))
}

// heard shows a line of a subscriber.
func (s *stage) heard(g *peertest.Grid, line string) { s.say("  %s: %s", g.Name, line) }

// subscriber is a running mosquitto_sub.
type subscriber struct {
	s     *stage
	g     *peertest.Grid
	cmd   *exec.Cmd
	stop  context.CancelFunc
	lines chan string // closed at its end
	ended chan error
}

func (s *stage) subscribe(ctx context.Context, g *peertest.Grid, filters ...string) (*subscriber, error) {
	args := []string{"-v", "-q", "2"}
	for _, f := range filters {
		args = append(args, "-t", f)
	}
	s.client(g, "mosquitto_sub", append(args, "&"))
	ctx, stop := context.WithCancel(ctx)
	sub := &subscriber{s: s, g: g, stop: stop, lines: make(chan string, 64), ended: make(chan error, 1)}
	sub.cmd = exec.CommandContext(ctx, "mosquitto_sub", append(at(g), args...)...)
	out, err := sub.cmd.StdoutPipe()
	if err == nil {
		err = sub.cmd.Start()
	}
	if err != nil {
		stop()
		return nil, fmt.Errorf("subscribe at %s: %w", g.Name, err)
	}
	go sub.read(ctx, out)
	return sub, nil
}

func (u *subscriber) read(ctx context.Context, out io.Reader) {
	defer close(u.lines)
	for scan := bufio.NewScanner(out); scan.Scan(); {
		select {
		case u.lines <- scan.Text():
		case <-ctx.Done():
		}
	}
	u.ended <- u.cmd.Wait()
}

// await shows what the subscriber gets until it had each of the lines, in any order.
func (u *subscriber) await(lines ...string) error {
	missing := map[string]bool{}
	for _, l := range lines {
		missing[l] = true
	}
	late := time.After(lineWithin)
	for len(missing) > 0 {
		select {
		case line, ok := <-u.lines:
			if !ok {
				return fmt.Errorf("the subscriber at %s ended: %w", u.g.Name, <-u.ended)
			}
			u.s.heard(u.g, line)
			delete(missing, line)
		case <-late:
			return fmt.Errorf("the subscriber at %s has not got %q within %v", u.g.Name, lines, lineWithin)
		}
	}
	return nil
}

// end stops the subscriber.
func (u *subscriber) end() {
	u.stop()
	for range u.lines { // until it is gone
	}
}
