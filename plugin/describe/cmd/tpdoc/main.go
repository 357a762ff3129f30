// Tpdoc collects the doc comments of a package into a Go file that gives them to plugin/describe, so that a
// peer can tell its other sides what its routes and their fields mean. It is run by go generate:
//
//	//go:generate go run github.com/henrylee2cn/teleport/plugin/describe/cmd/tpdoc
//
// Usage:
//
//	tpdoc [-o FILE] [-all] [-check] [DIRECTORY]
//
// It reads the Go files of the directory, the current one if none is given, but for tests. It collects the
// comments of exported types, of their fields and methods, and of functions that have the form of a
// handler, exported or not. With -all it collects those of all types. The file, tpdoc_gen.go if -o does not
// say otherwise, has the same bytes for the same comments. With -check nothing is written: the status is 1
// if the file is not what it would be.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

func main() { os.Exit(run(os.Args[1:], os.Stderr)) }

// run is main with the arguments of the command, where errors go, and the status.
func run(args []string, stderr io.Writer) int {
	flags := flag.NewFlagSet("tpdoc", flag.ContinueOnError)
	flags.SetOutput(stderr)
	out := flags.String("o", "tpdoc_gen.go", "name of the file in the directory")
	all := flags.Bool("all", false, "types that are not exported, too")
	check := flags.Bool("check", false, "write nothing: the status is 1 if the file is not up to date")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if flags.NArg() > 1 {
		fmt.Fprintf(stderr, "tpdoc: there are %d directories, expected one at most\n", flags.NArg())
		return 2
	}
	dir := "."
	if flags.NArg() == 1 {
		dir = flags.Arg(0)
	}
	if filepath.Base(*out) != *out || filepath.Ext(*out) != ".go" {
		fmt.Fprintf(stderr, "tpdoc: -o %s: expected the name of a Go file, without a directory\n", *out)
		return 2
	}
	if err := generate(dir, *out, *all, *check); err != nil {
		fmt.Fprintf(stderr, "tpdoc: %v\n", err)
		return 1
	}
	return 0
}

// generate writes the file, or checks it.
func generate(dir, name string, all, check bool) error {
	pkg, texts, err := collect(dir, name, all)
	if err != nil {
		return err
	}
	made, err := render(pkg, texts)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, name)
	if !check {
		return os.WriteFile(file, made, 0o666)
	}
	is, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if !bytes.Equal(bytes.ReplaceAll(is, []byte("\r\n"), []byte("\n")), made) {
		return fmt.Errorf("%s is not up to date: run go generate", file)
	}
	return nil
}
