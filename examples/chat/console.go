package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// callTime is how long a person at a terminal waits for an answer.
const callTime = 10 * time.Second

const help = `what you type is said in the room; lines with a slash are:
  /join ROOM       go to a room, and hear what is said in it
  /part            leave the room
  /who             who is in the room
  /tell NAME TEXT  whisper to one person, wherever that person is
  /ask NAME        ask "are you there?"
  /quit`

// Console is a person at a terminal.
type Console struct {
	person *Person
	room   string

	mu  sync.Mutex // guards out
	out io.Writer
}

// Talk connects a person and does what the lines of in say, until they end, or ctx does.
func Talk(ctx context.Context, f *Finder, name, room string, in io.Reader, out io.Writer) error {
	c := &Console{out: out}
	connecting, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	var err error
	c.person, err = Connect(connecting, f, name, Ears{
		Said:   func(m Message) { c.printf("%s> %s: %s", m.Room, m.From, m.Text) },
		Told:   func(m Message) { c.printf("%s whispers: %s", m.From, m.Text) },
		Missed: func(room string) { c.printf("%s> (messages are missing here)", room) },
		Asked: func(from string) string {
			c.printf("%s has asked whether you are there", from)
			return name + " is there"
		},
	})
	if err != nil {
		return err
	}
	defer c.person.Close()
	if err = c.do(ctx, "/join "+room); err != nil {
		return err
	}
	c.printf("%s", help)
	lines := make(chan string)
	go func() { // ends with in, or with the process
		defer close(lines)
		for text := bufio.NewScanner(in); text.Scan(); {
			select {
			case lines <- strings.TrimSpace(text.Text()):
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case line, more := <-lines:
			if !more || line == "/quit" {
				return nil
			}
			if err := c.do(ctx, line); err != nil {
				c.printf("! %v", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// do does what one line says.
func (c *Console) do(ctx context.Context, line string) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	command, rest, _ := strings.Cut(line, " ")
	switch rest = strings.TrimSpace(rest); {
	case line == "":
		return nil
	case !strings.HasPrefix(line, "/"):
		if c.room == "" {
			return errors.New("you are in no room: /join ROOM")
		}
		return c.person.Say(ctx, c.room, line)
	case command == "/join":
		if err := c.person.Join(ctx, rest); err != nil {
			return err
		}
		c.room = rest
	case command == "/part":
		room := c.room
		c.room = ""
		return c.person.Part(ctx, room)
	case command == "/who":
		all, err := c.person.Who(ctx, c.room)
		for _, p := range all.People {
			c.printf("  %s, on %s", p.Name, p.Server)
		}
		if all.Missing != "" {
			c.printf("  perhaps more: %s", all.Missing)
		}
		return err
	case command == "/tell":
		to, text, _ := strings.Cut(rest, " ")
		return c.person.Tell(ctx, to, text)
	case command == "/ask":
		answer, err := c.person.Ask(ctx, rest)
		if err == nil {
			c.printf("%s", answer)
		}
		return err
	default:
		return fmt.Errorf("%s is not known\n%s", command, help)
	}
	return nil
}

func (c *Console) printf(format string, args ...interface{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = fmt.Fprintf(c.out, format+"\n", args...)
}
