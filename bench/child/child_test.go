package child

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// patience bounds every wait, so that a failure does not hang.
const patience = 30 * time.Second

// TestMain is the child too, which says what it is asked to say.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "child-of-test" {
		fmt.Printf("{\"text\":%q}\n", os.Args[2])
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			switch text := lines.Text(); text {
			case "end":
				return
			case "say nothing":
			default:
				fmt.Println(text)
			}
		}
		return
	}
	os.Exit(m.Run())
}

func TestAnswers(t *testing.T) {
	p, err := Start(t.Context(), "child-of-test", "hello")
	if err != nil {
		t.Fatal(err)
	}
	defer p.End()
	var got struct{ Text string }
	if err := p.Wait(patience, &got); err != nil || got.Text != "hello" {
		t.Fatalf("its first words are %q, %v", got.Text, err)
	}
	for _, c := range []struct{ name, line, text, err string }{
		{"an answer", `{"text":"one"}`, "one", ""},
		{"an error", `{"text":"two","err":"it does not work"}`, "", "it does not work"},
		{"no JSON", `nonsense`, "", "invalid character"},
		{"after all that", `{"text":"three"}`, "three", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := p.Send(c.line); err != nil {
				t.Fatal(err)
			}
			got.Text = ""
			err := p.Wait(patience, &got)
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) ||
				got.Text != c.text {
				t.Errorf("%q, %v", got.Text, err)
			}
		})
	}
	if err := p.Send("say nothing"); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(time.Millisecond, &got); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("without an answer: %v", err)
	}
	if err := p.Send("end"); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(patience, &got); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("of a process that has ended: %v", err)
	}
}

// A child that reads its input no more ends with the context.
func TestContextEndsTheChild(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p, err := Start(ctx, "child-of-test", "hello")
	if err != nil {
		t.Fatal(err)
	}
	defer p.End()
	var got struct{ Text string }
	if err := p.Wait(patience, &got); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := p.Wait(patience, &got); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("after the end of the context: %v", err)
	}
}
