package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience bounds every wait, so that a failure does not hang.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	runChild() // the processes that a run starts are this test's program again
	goleak.VerifyTestMain(m)
}

// Every system, as processes, with members that check each message.
func TestEverySystem(t *testing.T) {
	file := filepath.Join(t.TempDir(), "results.json")
	var out, progress bytes.Buffer
	args := []string{"-members", "30,7", "-rounds", "2", "-deliveries", "100", "-o", file}
	err := run(t.Context(), args, &out, &progress)
	if err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var f findings
	if err := json.Unmarshal(b, &f); err != nil {
		t.Fatal(err)
	}
	if len(f.Results) != 2 {
		t.Fatalf("%d results", len(f.Results))
	}
	for i, members := range []int{30, 7} {
		if f.Results[i].Members != members || len(f.Results[i].Systems) != len(allSystems()) {
			t.Errorf("%d members, %d systems", f.Results[i].Members, len(f.Results[i].Systems))
		}
		for _, s := range f.Results[i].Systems {
			if len(s.Rounds) != 2 || s.Err != "" {
				t.Errorf("%s: %d rounds, %s", s.Name, len(s.Rounds), s.Err)
			}
			for _, r := range s.Rounds {
				if r.Delivered < 100 || r.Delivered%int64(members*s.Burst) != 0 || r.Failed != 0 ||
					!(r.P50 > 0 && r.P50 <= r.P99 && r.P99 <= r.Slowest) || !(r.Allocs > 0 && r.Rate > 0) {
					t.Errorf("%s: %+v", s.Name, r)
				}
			}
			if n := strings.Count(out.String(), "\n| "+s.Name+" "); n != 2 {
				t.Errorf("%s has %d rows in\n%s", s.Name, n, &out)
			}
		}
	}
}

// The same with members that are sessions, which grant credit.
func TestMembersThatAreSessions(t *testing.T) {
	var out, progress bytes.Buffer
	args := "-members 5 -rounds 1 -deliveries 1000 -systems tp.* -client tp"
	err := run(t.Context(), strings.Fields(args), &out, &progress)
	if err != nil {
		t.Fatalf("%v\n%s", err, &progress)
	}
}

// A member that does not read is not waited for when all have the messages, and the floor shows that it does
// not read: writing to it fails in the end.
func TestOneMemberDoesNotRead(t *testing.T) {
	var progress bytes.Buffer
	o := options{rounds: 1, patience: patience, progress: &progress}
	for _, s := range allSystems() {
		if s.Name == floorOne || s.Name == floorMany || s.Name == "tp.trypush" || s.Name == "centrifuge" {
			o.systems = append(o.systems, s)
		}
	}
	res, err := o.measureStalled(t.Context(), 4)
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Systems) != 3 { // those that send one message at a time
		t.Errorf("%d systems", len(res.Systems))
	}
	for _, s := range res.Systems {
		if s.Err != "" || len(s.With) != 1 || len(s.Without) != 1 {
			t.Errorf("%s: %+v", s.Name, s)
			continue
		}
		if with, without := s.With[0], s.Without[0]; with.Delivered != 3*stalledMessages ||
			without.Delivered != 4*stalledMessages || without.Failed != 0 {
			t.Errorf("%s: %+v, and without %+v", s.Name, with, without)
		}
	}
	if n := res.Systems[0].With[0].Failed; n == 0 {
		t.Error("the floor has written everything to a member that does not read")
	}
	if text := res.text(); strings.Count(text, "\n| ") != 5 || strings.Contains(text, "FAILED") {
		t.Errorf("the table is\n%s", text)
	}
}

// faulty is a room that does one thing wrong, in the third message, to its first member.
func faulty(wrong func(frame []byte) []byte) func(net.Listener, role, func()) (*opened, error) {
	return func(ln net.Listener, r role, joined func()) (*opened, error) {
		f := newFloor(ln, r, joined)
		sent := 0
		return &opened{close: f.close, ways: map[string]way{"": func(messages [][]byte) (failed int) {
			for _, m := range messages {
				frame := appendFrame(nil, m)
				for i, member := range f.members {
					b := frame
					if sent == 2 && i == 0 {
						b = wrong(bytes.Clone(frame))
					}
					f.write(member, b)
				}
				sent++
			}
			return 0
		}}}, nil
	}
}

// Faults that the members have to find, by name.
var faults = map[string]struct {
	wrong func(frame []byte) []byte
	err   string
}{
	"nothing wrong":  {func(b []byte) []byte { return b }, ""},
	"lost":           {func(b []byte) []byte { return nil }, "of 9 deliveries have come"},
	"twice":          {func(b []byte) []byte { return append(b, b...) }, "message 2 came where 3"},
	"another byte":   {func(b []byte) []byte { b[len(b)-1]++; return b }, "message 2 has another text"},
	"another number": {func(b []byte) []byte { b[len(b)-messageSize+7]++; return b }, "message 3 came"},
	"no frame":       {func(b []byte) []byte { return append(make([]byte, 4), b...) }, "codec id"},
}

func init() {
	for name, f := range faults {
		rooms = append(rooms, room{name: name, open: faulty(f.wrong)})
	}
}

// A delivery that is lost, or wrong, is an error of the system, and says which one it was.
func TestFaults(t *testing.T) {
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := options{systems: []system{{Room: name, Burst: 1}}, rounds: 1, deliveries: 1,
				progress: io.Discard, patience: time.Second}
			res, err := o.measure(t.Context(), 3)
			if err != nil {
				t.Fatal(err)
			}
			if err := res.Systems[0].Err; (err == "") != (f.err == "") || !strings.Contains(err, f.err) {
				t.Errorf("the error is %q", err)
			}
			if text := res.text(); strings.Contains(text, "FAILED") == (f.err == "") {
				t.Errorf("the table is\n%s", text)
			}
		})
	}
}

func TestWrongArguments(t *testing.T) {
	for _, args := range []string{
		"-systems nothing", "-members 1", "-members some", "-members 5,", "-members 100000000", "-rounds 0",
		"-deliveries 0", "-patience 0s", "-client other", "-stalled -client tp", "extra", "-no-such-flag",
		"-o /no/such/directory/file -members 2 -systems floor -rounds 1 -deliveries 1",
	} {
		var out bytes.Buffer
		if err := run(t.Context(), strings.Fields(args), &out, io.Discard); err == nil {
			t.Errorf("%s: no error, but\n%s", args, &out)
		}
	}
}

func TestList(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-list"}, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, s := range allSystems() {
		if !strings.Contains(out.String(), s.Name+" ") {
			t.Errorf("%s is not listed", s.Name)
		}
		if _, ok := findRoom(s.Room); !ok {
			t.Errorf("%s sends in %s, which there is not", s.Name, s.Room)
		}
	}
}

// A child says what is wrong with a question, and answers the next one.
func TestQuestions(t *testing.T) {
	var out bytes.Buffer
	in := strings.NewReader(`nonsense
{"do":"dance"}
{"do":"send","system":"floor","burst":1,"times":1}
{"do":"send","system":"floor","burst":21}
{"do":"send","system":"tp.push","burst":1}
{"do":"settle"}
`)
	if err := (role{Room: "floor", Patience: patience}).serve(in, &out); err != nil {
		t.Fatal(err)
	}
	answers := json.NewDecoder(&out)
	for i, want := range []string{"", "invalid character", `"dance"`, "no members yet", "1 to 20",
		`no system "tp.push"`, ""} {
		var a answer
		if err := answers.Decode(&a); err != nil {
			t.Fatalf("answer %d: %v", i, err)
		}
		if (a.Err == "") != (want == "") || !strings.Contains(a.Err, want) || (a.Addr != "") != (i == 0) {
			t.Errorf("answer %d: %+v, want the error %q", i, a, want)
		}
	}
}

// A child that cannot start says why.
func TestRolesThatCannotStart(t *testing.T) {
	for name, r := range map[string]role{
		"no such room":             {Room: "no such room"},
		"members of no such room":  {Room: "no such room", Addr: "127.0.0.1:1"},
		"a link that is not there": {Room: "floor", Addr: "127.0.0.1:1", Link: "127.0.0.1:1", Members: 1},
		"a peer that does not read": {Room: "tp", Addr: "127.0.0.1:1", Link: "127.0.0.1:1", Members: 1,
			WithTP: true, Stalled: true},
	} {
		t.Run(name, func(t *testing.T) {
			r.Patience = patience
			var out bytes.Buffer
			if err := r.serve(strings.NewReader(""), &out); err != nil {
				t.Fatal(err)
			}
			var a answer
			if err := json.Unmarshal(out.Bytes(), &a); err != nil || a.Err == "" {
				t.Errorf("it starts: %+v, %v", a, err)
			}
		})
	}
}
