package peertest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stopGrace is how long a program may take to end by itself.
const stopGrace = 15 * time.Second

// Process is a program that may be run many times, one run at a time, with its
// output appended to one log file.
type Process struct {
	// Name is for errors, Argv, Env (added to this process's own) and Dir are
	// what to run. They may be changed between runs.
	Name string
	Argv []string
	Env  []string
	Dir  string
	// Log is the file that takes standard output and error.
	Log string

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when the run has ended
}

// Start begins a run. The program dies with this process.
func (p *Process) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running() {
		return fmt.Errorf("start %s: it runs already", p.Name)
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	defer log.Close()
	cmd := exec.Command(p.Argv[0], p.Argv[1:]...)
	cmd.Env = append(os.Environ(), p.Env...)
	cmd.Dir = p.Dir
	cmd.Stdout, cmd.Stderr = log, log
	// Its own group: Ctrl-C is for this process, which then stops the program
	// in its own order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done = cmd, done
	go func() {
		// How it ended is in ProcessState; what it said is in the log.
		_ = cmd.Wait()
		close(done)
	}()
	return nil
}

func (p *Process) running() bool {
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// current returns the run under way, or nil.
func (p *Process) current() (*exec.Cmd, chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.running() {
		return nil, nil
	}
	return p.cmd, p.done
}

// Running says whether a run is under way.
func (p *Process) Running() bool {
	cmd, _ := p.current()
	return cmd != nil
}

// Pid is the process id of the run under way, or 0.
func (p *Process) Pid() int {
	cmd, _ := p.current()
	if cmd == nil {
		return 0
	}
	return cmd.Process.Pid
}

// Done is closed when the run has ended; closed also when there was none.
func (p *Process) Done() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done == nil {
		c := make(chan struct{})
		close(c)
		return c
	}
	return p.done
}

// Stop asks the run to end (SIGTERM) and waits. One that does not end in 15
// seconds is killed, and that is an error. Without a run it does nothing.
func (p *Process) Stop() error {
	cmd, done := p.current()
	if cmd == nil {
		return nil
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.Name, err)
	}
	grace := time.NewTimer(stopGrace)
	defer grace.Stop()
	select {
	case <-done:
		return nil
	case <-grace.C:
		err := fmt.Errorf("stop %s: still there %v after SIGTERM, killed; see %s", p.Name, stopGrace, p.Log)
		return errors.Join(err, p.Kill())
	}
}

// Kill ends the run as kill -9 does and waits until it is gone.
func (p *Process) Kill() error {
	cmd, done := p.current()
	if cmd == nil {
		return nil
	}
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s: %w", p.Name, err)
	}
	<-done
	return nil
}

// Signal sends a signal to the run, for instance SIGSTOP.
func (p *Process) Signal(s syscall.Signal) error {
	cmd, _ := p.current()
	if cmd == nil {
		return fmt.Errorf("signal %s: it does not run", p.Name)
	}
	if err := cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("signal %s: %w", p.Name, err)
	}
	return nil
}

// await polls ready during the run; its error shows the end of the log.
func (p *Process) await(ctx context.Context, ready func(context.Context) error) error {
	if err := poll(ctx, p.Done(), ready); err != nil {
		return fmt.Errorf("%s is not ready: %w\n%s:\n%s", p.Name, err, p.Log, tail(p.Log, 25))
	}
	return nil
}

// Memory is what the kernel says of a process, in bytes.
type Memory struct {
	RSS  int64 // resident now
	Peak int64 // highest resident since the start or ResetPeak
}

// Memory reads the run's memory from /proc.
func (p *Process) Memory() (Memory, error) {
	pid := p.Pid()
	if pid == 0 {
		return Memory{}, fmt.Errorf("memory of %s: it does not run", p.Name)
	}
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return Memory{}, fmt.Errorf("memory of %s: %w", p.Name, err)
	}
	var m Memory
	for s := bufio.NewScanner(bytes.NewReader(status)); s.Scan(); {
		f := strings.Fields(s.Text())
		if len(f) != 3 || f[2] != "kB" {
			continue
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return Memory{}, fmt.Errorf("memory of %s: %w", p.Name, err)
		}
		switch f[0] {
		case "VmRSS:":
			m.RSS = n << 10
		case "VmHWM:":
			m.Peak = n << 10
		}
	}
	if m.RSS == 0 || m.Peak == 0 {
		return Memory{}, fmt.Errorf("memory of %s: no VmRSS and VmHWM in /proc/%d/status", p.Name, pid)
	}
	return m, nil
}

// ResetPeak makes Memory.Peak count from now (proc_pid_clear_refs(5)).
func (p *Process) ResetPeak() error {
	pid := p.Pid()
	if pid == 0 {
		return fmt.Errorf("reset peak memory of %s: it does not run", p.Name)
	}
	if err := os.WriteFile(filepath.Join("/proc", strconv.Itoa(pid), "clear_refs"), []byte("5"), 0); err != nil {
		return fmt.Errorf("reset peak memory of %s: %w", p.Name, err)
	}
	return nil
}

// CPU is the processor time the run has used, in user and system mode.
func (p *Process) CPU() (time.Duration, error) {
	pid := p.Pid()
	if pid == 0 {
		return 0, fmt.Errorf("processor time of %s: it does not run", p.Name)
	}
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, fmt.Errorf("processor time of %s: %w", p.Name, err)
	}
	// The name, in parentheses, may hold anything; utime and stime are the
	// 12th and 13th fields after it, in ticks of 10 ms (USER_HZ).
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) < 13 {
		return 0, fmt.Errorf("processor time of %s: /proc/%d/stat has %d fields", p.Name, pid, len(f))
	}
	var sum time.Duration
	for _, field := range f[11:13] {
		n, err := strconv.ParseInt(string(field), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("processor time of %s: %w", p.Name, err)
		}
		sum += time.Duration(n) * 10 * time.Millisecond
	}
	return sum, nil
}

// LogTail returns the last lines that the process has written.
func (p *Process) LogTail(lines int) string { return tail(p.Log, lines) }

// tail returns the last lines of a file, for error messages.
func tail(file string, lines int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Calls is how many times the run has read and written, of files and connections
// alike: the system calls behind read(2) and write(2) and those like them, see
// proc_pid_io(5).
func (p *Process) Calls() (reads, writes int64, err error) {
	pid := p.Pid()
	if pid == 0 {
		return 0, 0, fmt.Errorf("system calls of %s: it does not run", p.Name)
	}
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "io"))
	if err != nil {
		return 0, 0, fmt.Errorf("system calls of %s: %w", p.Name, err)
	}
	var other int64
	if _, err := fmt.Sscanf(string(raw), "rchar: %d\nwchar: %d\nsyscr: %d\nsyscw: %d\n", &other, &other, &reads, &writes); err != nil {
		return 0, 0, fmt.Errorf("system calls of %s: /proc/%d/io: %w", p.Name, pid, err)
	}
	return reads, writes, nil
}
