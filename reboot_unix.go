//go:build unix

package tp

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// rebootSignals are the signals that ask for a reboot.
var rebootSignals = []os.Signal{syscall.SIGUSR2}

// startedAs is this process's file and directory as they were when it started: the
// file may have been replaced by now.
var startedAs = func() (p struct{ path, dir string }) {
	p.path, _ = os.Executable()
	p.dir, _ = os.Getwd()
	return p
}()

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
	files = append(files, say)

	cmd := exec.Command(startedAs.path, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Dir = startedAs.dir
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = files
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return name == envListeners || name == envReady
	}), envListeners+"="+strings.Join(addrs, "\n"), envReady+"="+strconv.Itoa(firstFile+len(addrs)))
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	_ = say.Close()
	if timeout >= 0 {
		_ = ready.SetReadDeadline(time.Now().Add(timeout))
	}
	switch _, err := ready.Read(make([]byte, 1)); {
	case err == nil:
		pid := cmd.Process.Pid
		go func() { _ = cmd.Wait() }()
		return pid, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return 0, fmt.Errorf("the new process did not serve all listeners within %v and was ended", timeout)
	}
	_ = cmd.Process.Kill() // it has closed the pipe and might go on without a word
	if err := cmd.Wait(); err != nil {
		return 0, fmt.Errorf("the new process ended before it served: %w", err)
	}
	return 0, errors.New("the new process ended before it served")
}
