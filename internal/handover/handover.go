// Package handover lets listening sockets outlive a process. A process that hands over starts a successor,
// the same program with the same arguments, with its listening sockets. The successor says on a pipe that it
// serves all of them; then the old process is not needed any more. Until then, and if the successor fails,
// the old one goes on serving. As the sockets are the same, no connection that the kernel has accepted is
// lost. The package also takes sockets that systemd hands over, and tells systemd when the process is ready.
//
// There is one state for the process. All functions are safe for concurrent use.
package handover

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/henrylee2cn/teleport/internal/errno"
)

// defaultTimeout holds until SetTimeout is called.
const defaultTimeout = 30 * time.Second

const (
	// envListeners has the addresses of the listeners that were handed over, as
	// they were asked for, one a line; their files begin at firstFile.
	envListeners = "TELEPORT_LISTENERS"
	// envReady is the number of the pipe's file.
	envReady  = "TELEPORT_READY"
	firstFile = 3
)

// ErrUnsupported is the error of Start on systems where listening sockets cannot be handed over.
var ErrUnsupported = errors.New("tp: reboot: not supported on this system")

// Told has functions that are called when something happens that the program may want to know or log. They
// are set before anything listens.
var Told struct {
	// Serves is called when a listener is about to be served for the first time, before others may
	// know that the process is ready.
	Serves func()
	// TookOver is called when all listeners are served that a predecessor has handed over.
	TookOver func()
	// NotNotified is called when the service manager could not be told its state.
	NotNotified func(state string, err error)
}

// state is the state of this process, as a successor and as a predecessor.
var state = struct {
	// making is a lock: a goroutine that makes a listener sends to it. It guards the two fields below.
	// inherited has the listeners that were handed over to this process and not yet asked for.
	making    chan struct{}
	inherited []*sharedListener
	read      bool

	mu      sync.Mutex // guards the fields below
	timeout time.Duration
	under   bool // a reboot is under way
	// own has the listeners that are to be handed over to a successor.
	own []*sharedListener
	// ready is the pipe on which to say that all listeners that were handed over are served; nil if no
	// predecessor waits.
	ready   *os.File
	waiting int         // how many inherited listeners are not served yet
	told    bool        // systemd has been told that this process serves
	child   *os.Process // the successor, until it serves
	ending  bool        // Shutdown has begun
}{timeout: defaultTimeout, making: make(chan struct{}, 1)}

// handed is what this process was started with. It is taken out of the environment,
// and its files are kept from programs that this one starts.
var handed = func() (h struct {
	addrs    string // of the listeners of a predecessor, one a line
	ready    int    // the file of the pipe
	byReboot bool
	bySystem int // the number of systemd's listeners
	err      error
}) {
	files := 0
	if h.addrs, h.byReboot = os.LookupEnv(envListeners); h.byReboot {
		if h.ready, h.err = strconv.Atoi(os.Getenv(envReady)); h.err != nil {
			h.err = fmt.Errorf("tp: reboot: %s: %w", envReady, h.err)
		}
		files = strings.Count(h.addrs, "\n") + 2
		_ = os.Unsetenv(envListeners)
		_ = os.Unsetenv(envReady)
		// sd_listen_fds(3)
	} else if pid, err := strconv.Atoi(os.Getenv("LISTEN_PID")); err == nil && pid == os.Getpid() {
		if h.bySystem, h.err = strconv.Atoi(os.Getenv("LISTEN_FDS")); h.err != nil {
			h.err = fmt.Errorf("tp: LISTEN_FDS: %w", h.err)
		}
		files = h.bySystem
		for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
			_ = os.Unsetenv(name)
		}
	}
	for i := range files {
		closeOnExec(firstFile + i)
	}
	return h
}()

// unlinker is a net.UnixListener, where there are any.
type unlinker interface{ SetUnlinkOnClose(unlink bool) }

// sharedListener is a listener that outlives the process.
type sharedListener struct {
	net.Listener
	addr   string    // as it was asked for
	first  sync.Once // call of Accept
	served bool      // guarded by state.mu
	isOurs bool      // was handed over by a predecessor that waits
}

// SetTimeout says how long Start waits for the new process to serve; without it 30 s. A negative value is
// no bound.
func SetTimeout(timeout time.Duration) {
	state.mu.Lock()
	defer state.mu.Unlock()
	state.timeout = timeout
}

// ByPredecessor reports whether a process that this one replaces has started it.
func ByPredecessor() bool { return handed.byReboot }

// Listen listens on the address of the network, or takes the listener that this process was handed over
// for what was asked for, the address as the program has it. A unix socket that a process has left that
// was killed is removed; one that is made has the mode, if that is not zero.
func Listen(network, address, asked string, mode os.FileMode) (net.Listener, error) {
	// Others that make listeners wait, as two must not take one address from each other.
	// Nobody else does: what is done here may take time.
	state.making <- struct{}{}
	defer func() { <-state.making }()
	if err := inherit(); err != nil {
		return nil, err
	}
	l := takeInherited(network, address, asked)
	if l == nil {
		ln, err := listen(network, address, mode)
		if errors.Is(err, errno.InUse) && removeLeftSocket(network, address) {
			ln, err = listen(network, address, mode)
		}
		if err != nil {
			return nil, fmt.Errorf("tp: %w", err)
		}
		l = &sharedListener{Listener: ln, addr: asked}
	}
	state.mu.Lock()
	defer state.mu.Unlock()
	state.own = append(state.own, l)
	return l, nil
}

func listen(network, address string, mode os.FileMode) (net.Listener, error) {
	if network != "unix" || mode == 0 {
		return net.Listen(network, address)
	}
	return listenUnix(address, mode)
}

// removeLeftSocket removes a unix socket that nobody listens on: whoever made it has
// been killed. It reports whether it did.
func removeLeftSocket(network, path string) bool {
	info, err := os.Lstat(path)
	if network != "unix" || err != nil || info.Mode()&os.ModeSocket == 0 {
		return false
	}
	conn, err := net.Dial(network, path)
	if err == nil {
		_ = conn.Close()
	}
	return errors.Is(err, errno.Refused) && os.Remove(path) == nil
}

// takeInherited returns the listener that was handed over for the address.
func takeInherited(network, address, asked string) *sharedListener {
	for i, l := range state.inherited {
		if l.addr == asked || l.addr == "" && sameAddr(l.Addr(), network, address) {
			state.inherited = slices.Delete(state.inherited, i, i+1)
			l.addr = asked
			return l
		}
	}
	return nil
}

// sameAddr reports whether a listener of systemd's is what was asked for.
func sameAddr(a net.Addr, network, address string) bool {
	if a.Network() != network {
		return false
	}
	if network == "unix" {
		return a.String() == address
	}
	want, err := net.ResolveTCPAddr(network, address)
	got, ok := a.(*net.TCPAddr)
	if err != nil || !ok || want.Port != got.Port {
		return false
	}
	return want.IP.Equal(got.IP) || (want.IP == nil || want.IP.IsUnspecified()) &&
		(got.IP == nil || got.IP.IsUnspecified())
}

// Close forgets the listener, which ends for this process.
func (l *sharedListener) Close() error {
	state.mu.Lock()
	if i := slices.Index(state.own, l); i >= 0 {
		state.own = slices.Delete(state.own, i, i+1)
	}
	state.mu.Unlock()
	return l.Listener.Close()
}

// Accept says, the first time, that the listener is served.
func (l *sharedListener) Accept() (net.Conn, error) {
	l.first.Do(l.nowServed)
	return l.Listener.Accept()
}

func (l *sharedListener) nowServed() {
	if Told.Serves != nil {
		Told.Serves()
	}
	taken, ready := l.countServed()
	for _, u := range taken {
		u.SetUnlinkOnClose(true) // from now on it is this process's
	}
	if ready != nil {
		_, _ = ready.Write([]byte{'R'})
		_ = ready.Close()
		if Told.TookOver != nil {
			Told.TookOver()
		}
	}
}

// countServed returns what is to be done when all listeners are served that a predecessor has
// handed over: the unix sockets that are this process's now, and the pipe to say so on.
func (l *sharedListener) countServed() (taken []unlinker, ready *os.File) {
	state.mu.Lock()
	defer state.mu.Unlock()
	l.served = true
	if !slices.ContainsFunc(state.own, func(l *sharedListener) bool { return !l.served }) && !state.told &&
		!handed.byReboot {
		state.told = true
		go notify("READY=1")
	}
	if !l.isOurs {
		return nil, nil
	}
	if state.waiting--; state.waiting > 0 || state.ready == nil {
		return nil, nil
	}
	for _, l := range state.own {
		if u, ok := l.Listener.(unlinker); ok && l.isOurs {
			taken = append(taken, u)
		}
	}
	ready, state.ready = state.ready, nil
	return taken, ready
}

// End ends a successor that does not serve yet. No other is started from now on.
func End() {
	state.mu.Lock()
	state.ending = true
	child := state.child
	state.mu.Unlock()
	if child != nil {
		_ = child.Kill()
	}
}

// Start starts the program anew, with the same arguments, directory and environment, and hands the new
// process the listeners of Listen. It returns the new process's number when that serves them all. An
// error is why it does not, in which case the new process has ended, and its text begins with "tp:".
// There is one start at a time. A service manager that is systemd is told the number.
func Start() (pid int, err error) {
	state.mu.Lock()
	if state.ending {
		state.mu.Unlock()
		return 0, errors.New("tp: reboot: the process is shutting down")
	}
	if state.under {
		state.mu.Unlock()
		return 0, errors.New("tp: reboot: another one is under way")
	}
	state.under = true
	own, timeout := slices.Clone(state.own), state.timeout
	state.mu.Unlock()
	pid, err = startSuccessor(own, timeout)
	if err != nil {
		state.mu.Lock()
		state.under = false
		state.mu.Unlock()
		return 0, fmt.Errorf("tp: reboot: %w", err)
	}
	for _, l := range own {
		if u, ok := l.Listener.(unlinker); ok {
			u.SetUnlinkOnClose(false) // it is the successor's now
		}
	}
	notify(fmt.Sprintf("MAINPID=%d", pid))
	return pid, nil
}

// inherit takes what the process was started with, the first time.
func inherit() error {
	if handed.err != nil || state.read {
		return handed.err
	}
	state.read = true
	if !handed.byReboot {
		for i := range handed.bySystem {
			if err := inheritFile(firstFile+i, ""); err != nil {
				return err
			}
		}
		return nil
	}
	for i, addr := range strings.Split(handed.addrs, "\n") {
		if err := inheritFile(firstFile+i, addr); err != nil {
			return err
		}
	}
	state.mu.Lock()
	defer state.mu.Unlock()
	state.ready = os.NewFile(uintptr(handed.ready), "ready")
	state.waiting = len(state.inherited)
	return nil
}

func inheritFile(fd int, addr string) error {
	f := os.NewFile(uintptr(fd), "listener")
	ln, err := net.FileListener(f)
	_ = f.Close()
	if err != nil {
		return fmt.Errorf("tp: file %d, which should be a listening socket: %w", fd, err)
	}
	if u, ok := ln.(unlinker); ok {
		u.SetUnlinkOnClose(false) // it is another's, at least for now
	}
	state.inherited = append(state.inherited, &sharedListener{Listener: ln, addr: addr, isOurs: addr != ""})
	return nil
}

// notify tells the service manager, if there is one, about this process, see sd_notify(3).
func notify(what string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	conn, err := net.Dial("unixgram", path)
	if err == nil {
		_, err = conn.Write([]byte(what))
		_ = conn.Close()
	}
	if err != nil && Told.NotNotified != nil {
		Told.NotNotified(what, err)
	}
}
