// Package child runs this program again as a process of its own that answers questions: each is a line on its
// standard input, and each answer is a line of JSON on its standard output. When its input ends it exits.
package child

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

// Process is a child process, seen from its parent. Its methods are not safe for concurrent use.
type Process struct {
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers chan []byte // closed when the child's output ends
}

// Start starts this program again with the arguments. It is killed when ctx ends. What it writes to its
// standard error goes to that of this process.
func Start(ctx context.Context, args ...string) (*Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &Process{cmd: exec.CommandContext(ctx, self, args...), answers: make(chan []byte, 1)}
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
	return p, nil
}

// StartAs is Start for a child in a role, which is encoded as JSON; see [Become].
func StartAs(ctx context.Context, mark string, role any) (*Process, error) {
	arg, err := json.Marshal(role)
	if err != nil {
		return nil, err
	}
	return Start(ctx, mark, string(arg))
}

// Become makes this process a child if it was started by [StartAs] with the same mark, and then does not
// return. It comes first in main. Serve answers in the role until in ends; its error is printed behind the
// program's name.
func Become[R any](mark, program string, serve func(role R, in io.Reader, out io.Writer) error) {
	if len(os.Args) != 3 || os.Args[1] != mark {
		return
	}
	var role R
	err := json.Unmarshal([]byte(os.Args[2]), &role)
	if err == nil {
		err = serve(role, os.Stdin, os.Stdout)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: child: %v\n", program, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// read passes the child's lines on, until its output ends.
func (p *Process) read(out io.Reader) {
	defer close(p.answers)
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		p.answers <- line
	}
}

// Send sends a line, without waiting for the answer.
func (p *Process) Send(line string) error {
	_, err := io.WriteString(p.in, line+"\n")
	return err
}

// Wait decodes the child's next answer into what the pointer leads to. An answer that has a text under "err"
// makes that text the error.
func (p *Process) Wait(timeout time.Duration, answer any) error {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case line, ok := <-p.answers:
		if !ok {
			return errors.New("the process has ended")
		}
		var failed struct {
			Err string `json:"err"`
		}
		if err := json.Unmarshal(line, &failed); err != nil {
			return err
		}
		if failed.Err != "" {
			return errors.New(failed.Err)
		}
		return json.Unmarshal(line, answer)
	case <-timer.C:
		return fmt.Errorf("no answer from the process in %v", timeout)
	}
}

// End ends the child's input, so that it exits, and waits until it has; a child that takes long is killed.
func (p *Process) End() {
	p.in.Close()
	kill := time.AfterFunc(5*time.Second, func() { p.cmd.Process.Kill() })
	defer kill.Stop()
	for range p.answers { // whatever else it had to say
	}
	p.cmd.Wait()
}
