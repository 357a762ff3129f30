package main

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

func TestStream(t *testing.T) {
	program := filepath.Join(t.TempDir(), "stream.exe")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.Command(program, "-mib", "8", "-quiet").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want := `^server: 1 of the client's log: line 1
server: 2 of the client's log: line 2
server: 3 of the client's log: line 3
client: the log is not wanted any more: .*given the stream up.*
client: the server has received 8388608 of 8388608 bytes
client: the upload was stopped: true
server: the upload of half of it was stopped: .*given the stream up.*
$`
	if !regexp.MustCompile(want).Match(out) {
		t.Fatalf("%s", out)
	}
}
