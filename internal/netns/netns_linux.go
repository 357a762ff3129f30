package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// A Space is a network namespace. It belongs to a thread: sockets that are made there stay in it, whoever
// uses them afterwards.
type Space struct {
	tid  int
	jobs chan func()
	over chan struct{} // closed when it ends
}

func newSpace() (*Space, error) {
	s := &Space{jobs: make(chan func()), over: make(chan struct{})}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		s.tid = syscall.Gettid()
		err := syscall.Unshare(syscall.CLONE_NEWNET)
		ready <- err
		for err == nil {
			select {
			case job := <-s.jobs:
				job()
			case <-s.over:
				return
			}
		}
	}()
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("unshare: %w", err)
	}
	return s, nil
}

// Do runs f on the thread of the namespace, and reports false if that has ended.
func (s *Space) Do(f func()) bool {
	done := make(chan struct{})
	select {
	case s.jobs <- func() { defer close(done); f() }:
		<-done
		return true
	case <-s.over:
		return false
	}
}

// Run runs programs in the namespace, each given as one line.
func (s *Space) Run(lines ...string) error {
	for _, line := range lines {
		var out []byte
		var err error
		args := strings.Fields(line)
		if !s.Do(func() { out, err = exec.Command(args[0], args[1:]...).CombinedOutput() }) {
			err = errors.New("the namespace has ended")
		}
		if err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, out)
		}
	}
	return nil
}

// A Network is a client's and a server's namespace with two cables between them: 10.0.0.1 to 10.0.0.2, which
// tests cut, and 10.0.1.1 to 10.0.1.2, which they do not.
type Network struct{ Client, Server *Space }

// The addresses of the server on the cable that is cut, and on the other.
const Address, OtherAddress = "10.0.0.2", "10.0.1.2"

// Nobody has this hardware address: what is sent there is lost without a word.
const (
	clientMAC, serverMAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
	nobodysMAC           = "02:00:00:00:00:99"
)

// New makes a network. Close it.
func New() (*Network, error) {
	client, err := newSpace()
	if err != nil {
		return nil, err
	}
	server, err := newSpace()
	if err != nil {
		close(client.over)
		return nil, err
	}
	n := &Network{client, server}
	err = errors.Join(
		client.Run(
			fmt.Sprintf("ip link add eth0 address %s type veth peer name eth0 address %s netns %d", clientMAC,
				serverMAC, server.tid),
			fmt.Sprintf("ip link add eth1 type veth peer name eth1 netns %d", server.tid),
			"ip addr add 10.0.0.1/24 dev eth0", "ip addr add 10.0.1.1/24 dev eth1", "ip link set eth0 up",
			"ip link set eth1 up"),
		server.Run("ip addr add 10.0.0.2/24 dev eth0", "ip addr add 10.0.1.2/24 dev eth1",
			"ip link set eth0 up", "ip link set eth1 up"),
	)
	if err == nil {
		err = n.Heal()
	}
	if err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// Close ends the network.
func (n *Network) Close() { close(n.Client.over); close(n.Server.over) }

// LoseFromClient loses what the client sends.
func (n *Network) LoseFromClient() error {
	return n.Client.Run("ip neigh replace 10.0.0.2 lladdr " + nobodysMAC + " dev eth0 nud permanent")
}

// LoseFromServer loses what the server sends.
func (n *Network) LoseFromServer() error {
	return n.Server.Run("ip neigh replace 10.0.0.1 lladdr " + nobodysMAC + " dev eth0 nud permanent")
}

// Lose loses what both send.
func (n *Network) Lose() error { return errors.Join(n.LoseFromClient(), n.LoseFromServer()) }

// Heal undoes what the others have lost.
func (n *Network) Heal() error {
	return errors.Join(
		n.Client.Run("ip neigh replace 10.0.0.2 lladdr "+serverMAC+" dev eth0 nud permanent"),
		n.Server.Run("ip neigh replace 10.0.0.1 lladdr "+clientMAC+" dev eth0 nud permanent"))
}

// Cuts are the ways in which the first cable is cut.
func Cuts() map[string]func(*Network) error {
	all := map[string]func(*Network) error{
		"link down at the client": func(n *Network) error { return n.Client.Run("ip link set eth0 down") },
		"link down at the server": func(n *Network) error { return n.Server.Run("ip link set eth0 down") },
		"packets lost":            (*Network).Lose,
		"client's packets lost":   (*Network).LoseFromClient,
		"server's packets lost":   (*Network).LoseFromServer,
	}
	if _, err := exec.LookPath("nft"); err == nil {
		all["packets dropped by nftables"] = func(n *Network) error {
			return n.Client.Run("nft add table ip t",
				"nft add chain ip t in { type filter hook input priority 0 ; }",
				"nft add rule ip t in iif eth0 drop",
				"nft add chain ip t out { type filter hook output priority 0 ; }",
				"nft add rule ip t out oif eth0 drop")
		}
	}
	return all
}

// inNamespace is set in the environment of the child process that runs in namespaces of its own; noNamespace
// is what that exits with if it cannot make more.
const (
	inNamespace = "TP_NETNS_CHILD"
	noNamespace = 77
)

// Check is for TestMain of a package whose tests call Inside.
func Check() {
	if os.Getenv(inNamespace) == "" {
		return
	}
	n, err := New()
	if err != nil {
		fmt.Println(err)
		os.Exit(noNamespace)
	}
	n.Close()
}

// Inside runs the test that calls it in a child process with namespaces of its own, as root there and with
// the flags for the test binary, and reports false in the parent, where the caller returns.
func Inside(t testing.TB, flags ...string) bool {
	if os.Getenv(inNamespace) != "" {
		return true
	}
	var why string
	for _, clone := range []uintptr{syscall.CLONE_NEWNET, syscall.CLONE_NEWNET | syscall.CLONE_NEWUSER} {
		args := []string{"-test.run=^" + t.Name() + "$", "-test.v", "-test.parallel=100", "-test.timeout=4m"}
		cmd := exec.Command(os.Args[0], append(args, flags...)...)
		cmd.Env = append(os.Environ(), inNamespace+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: clone, Pdeathsig: syscall.SIGKILL}
		if clone&syscall.CLONE_NEWUSER != 0 {
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
		}
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err == nil || errors.As(err, &exit) && exit.ExitCode() != noNamespace {
			t.Logf("%s", out)
			if err != nil {
				t.Error(err)
			}
			return false
		}
		why += fmt.Sprintf("; %v: %s", err, out)
	}
	t.Logf("NOT TESTED: no network namespaces can be made here%s", why)
	return false
}
