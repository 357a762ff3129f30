// List prints what a server describes, and calls one of the routes with JSON that it makes by the schema.
// It knows nothing of the server: any other that has the plugin will do.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/google/jsonschema-go/jsonschema"

	tp "github.com/henrylee2cn/teleport"
	"github.com/henrylee2cn/teleport/plugin/describe"
)

var (
	addr = flag.String("addr", "127.0.0.1:9090", "address of the server")
	path = flag.String("call", "/group/orders/place", "path of the route to call")
)

func main() {
	flag.Parse()
	tp.SetLogLevel(tp.LevelError)
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	peer := tp.NewPeer(nil)
	defer peer.Close()
	sess, err := peer.DialContext(ctx, *addr)
	if err != nil {
		return err
	}
	d, err := describe.Fetch(ctx, sess)
	if err != nil {
		return err
	}
	for _, r := range d.Routes {
		doc, _, _ := strings.Cut(r.Doc, "\n")
		fmt.Printf("%-6s %-20s %s\n", r.Kind, r.Path, doc)
	}
	route := d.Find(*path, describe.Pull)
	if route == nil {
		return fmt.Errorf("the server has no pull %s", *path)
	}
	schema, err := d.Bundle(route.Argument)
	if err != nil {
		return err
	}
	argument, err := json.Marshal(sample(schema, schema.Defs, 3))
	if err != nil {
		return err
	}
	if err := d.Validate(route.Argument, argument); err != nil {
		return err
	}
	fmt.Printf("\n%s %s\n", *path, argument)
	reply, err := tp.Call[json.RawMessage](ctx, sess, *path, json.RawMessage(argument))
	if err != nil {
		return err
	}
	if err := d.Validate(route.Reply, reply); err != nil {
		return err
	}
	fmt.Printf("%s\n", reply)
	return nil
}

// sample makes a value that fits a schema of the kind that descriptions have. It is at most so deep.
func sample(s *jsonschema.Schema, defs map[string]*jsonschema.Schema, deep int) interface{} {
	if name, ok := strings.CutPrefix(s.Ref, "#/$defs/"); ok {
		return sample(defs[name], defs, deep)
	}
	if len(s.AnyOf) > 0 && deep > 0 {
		return sample(s.AnyOf[0], defs, deep)
	}
	typ := s.Type
	if len(s.Types) > 0 && deep > 0 {
		typ = s.Types[0]
	}
	switch typ {
	case "boolean":
		return true
	case "integer", "number":
		return 1
	case "string":
		return "text"
	case "array":
		return []interface{}{sample(s.Items, defs, deep-1)}
	case "object":
		object := make(map[string]interface{})
		for name, property := range s.Properties {
			object[name] = sample(property, defs, deep-1)
		}
		return object
	}
	return nil
}
