package harness

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// process is a child process, seen from its parent.
type process struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers chan answer // closed when the child's output ends
	hello   snapshot
}

type answer struct {
	snapshot
	err error
}

// startTimeout bounds how long a child takes until it is ready, with all of its
// connections open.
const startTimeout = time.Minute

// startProcess starts this program again in the role, and returns when the child
// is ready. It is killed when ctx ends.
func startProcess(ctx context.Context, r role) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	arg, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.CommandContext(ctx, self, childArg, string(arg)), answers: make(chan answer, 1)}
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go p.read(out)
	if p.hello, err = p.wait(startTimeout); err != nil {
		p.end()
		return nil, err
	}
	return p, nil
}

// read passes the child's lines on, until its output ends.
func (p *process) read(out io.Reader) {
	defer close(p.answers)
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var a answer
		a.err = json.Unmarshal(line, &a.snapshot)
		p.answers <- a
	}
}

func (p *process) send(cmd string) error {
	_, err := io.WriteString(p.in, cmd+"\n")
	return err
}

// wait returns the child's next answer.
func (p *process) wait(timeout time.Duration) (snapshot, error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case a, ok := <-p.answers:
		switch {
		case !ok:
			return snapshot{}, errors.New("the process has ended")
		case a.err != nil:
			return snapshot{}, a.err
		case a.Err != "":
			return snapshot{}, errors.New(a.Err)
		}
		return a.snapshot, nil
	case <-timer.C:
		return snapshot{}, fmt.Errorf("no answer from the process in %v", timeout)
	}
}

// ask sends a command and returns its answer.
func (p *process) ask(cmd string, timeout time.Duration) (snapshot, error) {
	if err := p.send(cmd); err != nil {
		return snapshot{}, err
	}
	return p.wait(timeout)
}

// end ends the child's input, so that it exits, and waits until it has; a child
// that takes long is killed.
func (p *process) end() {
	p.in.Close()
	kill := time.AfterFunc(5*time.Second, func() { p.cmd.Process.Kill() })
	defer kill.Stop()
	for range p.answers { // whatever else it had to say
	}
	p.cmd.Wait()
}
