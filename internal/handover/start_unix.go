//go:build unix

package handover

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Signals are those that ask for a new start.
var Signals = []os.Signal{syscall.SIGUSR2}

// startedAs is this process's file and directory as they were when it started: the
// file may have been replaced by now.
var startedAs = func() (p struct{ path, dir string }) {
	p.path, _ = os.Executable()
	p.dir, _ = os.Getwd()
	// That has no symbolic links in it any more, which a deployment may change. The
	// name that the program was started by has, if it is one of the same file.
	name, err := exec.LookPath(os.Args[0])
	if err != nil {
		return p
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(p.dir, name)
	}
	if a, err := os.Stat(name); err == nil {
		if b, err := os.Stat(p.path); err == nil && os.SameFile(a, b) {
			p.path = name
		}
	}
	return p
}()

func closeOnExec(fd int) { syscall.CloseOnExec(fd) }

// follow is told of the successor that is about to serve; nil when it does, or has
// ended.
func follow(child *os.Process) {
	state.mu.Lock()
	state.child = child
	ending := state.ending
	state.mu.Unlock()
	if child != nil && ending {
		_ = child.Kill()
	}
}

// startSuccessor starts the new process and returns its number when it serves all
// listeners.
func startSuccessor(own []*sharedListener, timeout time.Duration) (pid int, err error) {
	if startedAs.path == "" {
		return 0, errors.New("the program's file is unknown")
	}
	var files []*os.File
	var addrs []string
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	for _, l := range own {
		f, err := l.Listener.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			return 0, fmt.Errorf("listener %s: %w", l.Addr(), err)
		}
		files, addrs = append(files, f), append(addrs, l.addr)
	}
	if len(files) == 0 {
		return 0, errors.New("there is no listener to hand over")
	}
	ready, say, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer ready.Close()
	defer say.Close()
	// By the files' Fd method os/exec would make the sockets block, in this process too.
	fds := []uintptr{0, 1, 2}
	for _, f := range append(files, say) {
		raw, err := f.SyscallConn()
		if err != nil {
			return 0, err
		}
		if err := raw.Control(func(fd uintptr) { fds = append(fds, fd) }); err != nil {
			return 0, err
		}
	}
	env := append(slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return name == envListeners || name == envReady
	}), envListeners+"="+strings.Join(addrs, "\n"), envReady+"="+strconv.Itoa(firstFile+len(addrs)))
	pid, err = syscall.ForkExec(startedAs.path, os.Args, &syscall.ProcAttr{Dir: startedAs.dir, Env: env,
		Files: fds})
	if err != nil {
		return 0, &os.PathError{Op: "fork/exec", Path: startedAs.path, Err: err}
	}
	runtime.KeepAlive(files)
	child, err := os.FindProcess(pid)
	if err != nil {
		return 0, err
	}
	_ = say.Close()
	follow(child)
	defer follow(nil)
	if timeout >= 0 {
		_ = ready.SetReadDeadline(time.Now().Add(timeout))
	}
	switch _, err := ready.Read(make([]byte, 1)); {
	case err == nil:
		go func() { _, _ = child.Wait() }()
		return pid, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		_ = child.Kill()
		_, _ = child.Wait()
		return 0, fmt.Errorf("the new process did not serve all listeners within %v and was ended", timeout)
	}
	_ = child.Kill() // it has closed the pipe and might go on without a word
	state, err := child.Wait()
	if err != nil {
		return 0, err
	}
	return 0, fmt.Errorf("the new process ended before it served: %v", state)
}
