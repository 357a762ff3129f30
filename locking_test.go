package tp

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// No code of others runs under a lock of the library's: no codec, hook, handler, logger,
// context, connection or listener. Whatever that does, it cannot wait for a lock that its own
// caller holds. And locks are taken in one order, so that no two goroutines wait for each
// other. Both are checked here, in the sources, without a run: what is called while a lock is
// held must be in the tables below, with the locks that it takes itself.

// lockRanks are the locks in the order in which they may be taken, as docs/architecture.md has
// them. One that is held may be joined by those behind it only.
var lockRanks = []string{
	"handover.syscall.ForkLock", "handover.state.mu", "grace.mu", "serving.mu", "earlySignals.mu", "Peer.mu",
	"routes.mu", "places.Places.mu", "call.mu", "outgoing.mu", "Group.mu", "fleet.mu", "Session.mu",
	"sessions.mu", "workers.Pool.mu", "load.Delay.mu",
	"workers.Lanes.mu", "workers.KeyLanes.mu", "memoryLog.mu",
	"calltable.Table[].mu", "keepalive.Keeper.mu", "keepalive.Pings.mu",
	"role.Pace.mu", "stream.Set.mu", "stream.Stream.mu",
	"stream.In.mu", "credit.outgoing.mu",
	"credit.Places.mu", "credit.Sender.mu", "credit.line.mu", "credit.Receiver.mu", "socket.reader.setting",
	"socket.writer.mu", "outbox.Box.mu", "outbox.Set.mu", "packet.Budget.mu", "packet.Pool.mu",
	"balance.Ejector.mu", "balance.Member.mu", "balance.Budget.mu", "routeTimes.mu",
	"rarely.Limiter[].mu", "codec.registry.mu", "alias.Alias.mu", "resolver.List.mu",
}

// takeLocks are the functions that may be called under a lock and take another, by the end of
// what stands in the sources.
var takeLocks = map[string]string{
	"ask":          "socket.writer.mu", // of credit.Flow.Begin
	"ejector.Join": "balance.Ejector.mu",
	"calls.Add":    "calltable.Table[].mu", "calls.Remove": "calltable.Table[].mu",
	"sess.copyPublic": "Session.mu", "sess.enter": "Session.mu",
	"pulls.Len": "calltable.Table[].mu", "streams.Len": "stream.Set.mu",
	"keeper.Expect": "keepalive.Keeper.mu",
	"sock.Unsent":   "socket.writer.mu", "sock.Send": "socket.writer.mu",
	"account.Waits": "packet.Budget.mu", "budget.Force": "packet.Budget.mu", "it.Release": "packet.Budget.mu",
	"budget.Waits": "packet.Budget.mu", "set.add": "outbox.Set.mu", "set.remove": "outbox.Set.mu",
	"it.Hold": "packet.Budget.mu", "shared.Hold": "packet.Budget.mu", "old.Release": "packet.Budget.mu",
	"l.Of.Release": "packet.Budget.mu", "list[].Release": "packet.Budget.mu",
	"m.counts": "balance.Member.mu", "other.counts": "balance.Member.mu", "m.eject": "balance.Member.mu",
	"release":     "packet.Budget.mu",
	"box.Waits":   "outbox.Box.mu",
	"bufpool.Put": "packet.Budget.mu", // of what is shared

	"budget.Take": "packet.Budget.mu", "budget.Give": "packet.Budget.mu", "inBudget.Give": "packet.Budget.mu",
	"inBudget.End": "packet.Budget.mu", "outBudget.End": "packet.Budget.mu", "pool.enter": "packet.Pool.mu",
	"p.promised": "packet.Pool.mu", "pool.leave": "packet.Pool.mu",
}

// takeNone are those that take none and call nobody else's code: of the language and the
// standard library, of lists, atomics and conditions, and small ones of our own. Any function
// whose name ends with Locked may be called too: it is in here itself.
var takeNone = strings.Fields(`
	syscall.Socket syscall.CloseOnExec signal.Notify signal.Stop append cap clear close copy delete len make
	max min new panic int int64 uint64 uintptr float64 string Load Store Add Swap CompareAndSwap Signal
	Broadcast Wait time.AfterFunc time.Now time.Since time.Duration time.Now().Add time.Now().Before now.Sub
	since.Sub frameBy.IsZero set.IsZero set.Before timer.Stop timer.Reset ending.Stop poll.Stop poll.Reset
	errors.New errors.Is fmt.Errorf strconv.Itoa url.ParseQuery maphash.String maphash.Bytes
	context.Background maps.Clone maps.Keys slices.Clone slices.Collect slices.Contains slices.ContainsFunc
	slices.Delete slices.DeleteFunc slices.Index slices.Insert slices.SortFunc sync.NewCond list.New
	pending.PushBack pending.Front pending.Len pending.Remove same.Len same.Front same.Remove
	byAddr[].PushBack addr.IsValid os.NewFile goutil.RwMap bufpool.GetSize bufpool.Put *ast.FuncLit
	sinceStart c.Cost c.Kind c.Lane c.Queue c.Quick c.Waits job.Kind l.nowRuns l.Waiting next.Queue
	strings.Clone j.Queue cfg.bound
	p.delivery it.cost old.cost e.cost push.cost items[].cost stays.Reset l.age sharedFrame
	ticks.Stop heldGroups.Delete w.give
	entries.First entries.PushBack entries.Remove waiting.First waiting.PushBack waiting.Remove laned.First
	laned.PushBack laned.Remove lanes.First lanes.PushBack lanes.Remove l.Next x.Next
	sess.Id *ast.ArrayType
	usable peer.draining p.draining frame.Drop
	woken.Done woken.Wait queue[].hasRoom queue[].add cn.flow.Pushed cn.flow.Waits
	o.stalled.IsZero queue.PushBack queue.Front queue.Remove try
	OutputBusy within hurried uri.Split role.Init deadline deadlineOf earlier r.overdue w.reserveFor
	bodyOf appendPart stall.Stop stall.Reset frame.Behind frame.In
	option.choose f.newUpstream f.config fleet.config end.With balance.NewEndpoint balance.Hash
	end.Outstanding member.Ejected slices.Equal context.WithCancel f.ctx.Err sinceStart
	config.suspects own.share others.share m.Ejected other.Ejected
	w.tryPermit p.lend budget.Waits newOwnCtx own.cancelWith postReadHeader.merge change
`)

// lockedCall is a call in the sources while locks are held.
type lockedCall struct {
	at    token.Position
	held  []string
	name  string // as it stands there
	takes string // the lock, if it is one that is taken
}

// lockWalker goes through a function.
type lockWalker struct {
	fset  *token.FileSet
	pkg   string
	types map[string]string // of variables, as far as they are known
	held  []string
	calls *[]lockedCall
}

func (w *lockWalker) lockName(x ast.Expr) string {
	sel, ok := x.(*ast.SelectorExpr)
	if !ok {
		return exprText(x)
	}
	of := exprText(sel.X)
	if i := strings.LastIndex(of, "."); i >= 0 {
		of = of[i+1:]
	}
	if t, ok := w.types[of]; ok {
		of = t
	}
	name := of + "." + sel.Sel.Name
	if w.pkg != "tp" {
		name = w.pkg + "." + name
	}
	return name
}

func exprText(x ast.Expr) string {
	switch x := x.(type) {
	case *ast.Ident:
		return x.Name
	case *ast.SelectorExpr:
		return exprText(x.X) + "." + x.Sel.Name
	case *ast.CallExpr:
		return exprText(x.Fun) + "()"
	case *ast.IndexExpr:
		return exprText(x.X) + "[]"
	case *ast.StarExpr:
		return exprText(x.X)
	case *ast.ParenExpr:
		return exprText(x.X)
	case *ast.UnaryExpr:
		return exprText(x.X)
	}
	return fmt.Sprintf("%T", x)
}

// block goes through statements in their order. What a branch that ends in a return has
// unlocked is held again behind it.
func (w *lockWalker) block(list []ast.Stmt) (ends bool) {
	for _, s := range list {
		if w.stmt(s) {
			return true
		}
	}
	return false
}

func (w *lockWalker) branch(body func() bool) {
	before := slices.Clone(w.held)
	if body() {
		w.held = before
	}
}

func (w *lockWalker) stmt(s ast.Stmt) (ends bool) {
	switch s := s.(type) {
	case *ast.BlockStmt:
		return w.block(s.List)
	case *ast.IfStmt:
		if s.Init != nil {
			w.stmt(s.Init)
		}
		w.expr(s.Cond)
		w.branch(func() bool { return w.block(s.Body.List) })
		if s.Else != nil {
			w.branch(func() bool { return w.stmt(s.Else) })
		}
	case *ast.ForStmt:
		for _, part := range []ast.Stmt{s.Init, s.Post} {
			if part != nil {
				w.stmt(part)
			}
		}
		w.expr(s.Cond)
		w.branch(func() bool { return w.block(s.Body.List) })
	case *ast.RangeStmt:
		w.expr(s.X)
		w.branch(func() bool { return w.block(s.Body.List) })
	case *ast.SwitchStmt:
		if s.Init != nil {
			w.stmt(s.Init)
		}
		w.expr(s.Tag)
		w.clauses(s.Body)
	case *ast.TypeSwitchStmt:
		w.clauses(s.Body)
	case *ast.SelectStmt:
		w.clauses(s.Body)
	case *ast.ReturnStmt:
		for _, x := range s.Results {
			w.expr(x)
		}
		return true
	case *ast.BranchStmt:
		return s.Tok != token.FALLTHROUGH
	case *ast.DeferStmt:
		if sel, ok := s.Call.Fun.(*ast.SelectorExpr); ok && (strings.HasSuffix(sel.Sel.Name, "Unlock") ||
			exprText(sel) == "r.apply") {
			return false // held to the end
		}
		w.expr(s.Call)
	case *ast.GoStmt:
		for _, x := range s.Call.Args {
			w.expr(x)
		}
	case nil:
	default:
		ast.Inspect(s, w.visit)
	}
	return false
}

func (w *lockWalker) clauses(body *ast.BlockStmt) {
	for _, c := range body.List {
		var list []ast.Stmt
		switch c := c.(type) {
		case *ast.CaseClause:
			for _, x := range c.List {
				w.expr(x)
			}
			list = c.Body
		case *ast.CommClause:
			list = c.Body
		}
		w.branch(func() bool { return w.block(list) })
	}
}

func (w *lockWalker) expr(x ast.Expr) {
	if x != nil {
		ast.Inspect(x, w.visit)
	}
}

func (w *lockWalker) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.FuncLit: // it runs elsewhere
		inner := *w
		inner.held = nil
		inner.block(n.Body.List)
		return false
	case *ast.CallExpr:
		for _, arg := range n.Args {
			w.expr(arg)
		}
		w.call(n)
		return false
	}
	return true
}

func (w *lockWalker) call(n *ast.CallExpr) {
	name := exprText(n.Fun)
	sel, _ := n.Fun.(*ast.SelectorExpr)
	switch {
	case sel != nil && (sel.Sel.Name == "Lock" || sel.Sel.Name == "RLock") && len(n.Args) == 0:
		lock := w.lockName(sel.X)
		if len(w.held) > 0 {
			*w.calls = append(*w.calls, lockedCall{w.fset.Position(n.Pos()), slices.Clone(w.held), name,
				lock})
		}
		w.held = append(w.held, lock)
	case w.pkg == "socket" && name == "r.apply": // which unlocks
		w.held = nil
	case sel != nil && (sel.Sel.Name == "Unlock" || sel.Sel.Name == "RUnlock") && len(n.Args) == 0:
		if i := slices.Index(w.held, w.lockName(sel.X)); i >= 0 {
			w.held = slices.Delete(slices.Clone(w.held), i, i+1)
		}
	case len(w.held) > 0:
		*w.calls = append(*w.calls, lockedCall{at: w.fset.Position(n.Pos()), held: slices.Clone(w.held),
			name: name})
	}
}

// lockedCalls returns the calls under locks of all that is in the package's files. A function
// whose name ends with Locked is called with its receiver's lock held.
func lockedCalls(t *testing.T, dir string) (calls []lockedCall) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	require.NoError(t, err)
	fset := token.NewFileSet()
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		src, err := os.ReadFile(name)
		require.NoError(t, err)
		f, err := parser.ParseFile(fset, name, src, 0)
		require.NoError(t, err)
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			w := &lockWalker{fset: fset, pkg: f.Name.Name, types: maps.Clone(usualTypes[f.Name.Name]),
				calls: &calls}
			if w.types == nil {
				w.types = map[string]string{}
			}
			receiver := ""
			for _, list := range []*ast.FieldList{fn.Recv, fn.Type.Params} {
				if list == nil {
					continue
				}
				for _, field := range list.List {
					for _, id := range field.Names {
						typ := exprText(field.Type)
						w.types[id.Name] = typ[strings.LastIndex(typ, ".")+1:]
						if list == fn.Recv {
							receiver = w.types[id.Name]
						}
					}
				}
			}
			if strings.HasSuffix(fn.Name.Name, "Locked") {
				w.held = []string{heldBy(f.Name.Name, receiver)}
			}
			w.block(fn.Body.List)
		}
	}
	return calls
}

// problem says what is wrong with a call, if anything is.
func (c lockedCall) problem() string {
	rank := func(lock string) int { return slices.Index(lockRanks, lock) }
	takes := c.takes
	for end, lock := range takeLocks {
		if c.name == end || strings.HasSuffix(c.name, "."+end) {
			takes = lock
		}
	}
	for _, held := range c.held {
		switch {
		case rank(held) < 0:
			return fmt.Sprintf("the lock %s is not in lockRanks", held)
		case takes != "" && rank(takes) < 0:
			return fmt.Sprintf("the lock %s is not in lockRanks", takes)
		case takes != "" && held == takes && c.takes != "" && len(c.held) == 1:
			return "" // a method that is called with its caller's lock takes its own
		case takes != "" && rank(held) >= rank(takes):
			return fmt.Sprintf("%s is taken while %s is held, which comes behind it", takes, held)
		}
	}
	if takes != "" || strings.HasSuffix(c.name, "Locked") {
		return ""
	}
	for _, name := range takeNone {
		if c.name == name || strings.HasSuffix(c.name, "."+name) {
			return ""
		}
	}
	return fmt.Sprintf("%s is called while %v is held: is it anybody else's code, and does it wait?", c.name,
		c.held)
}

func TestNoForeignCodeUnderALock(t *testing.T) {
	n := 0
	for _, dir := range []string{".", "codec", "packet", "socket", "plugin/alias", "plugin/proxy",
		"internal/calltable", "internal/credit", "internal/handover", "internal/workers",
		"internal/keepalive", "internal/load", "resolver",
		"internal/places", "internal/rarely",
		"internal/stream", "internal/role", "internal/bufpool", "internal/printable", "internal/outbox",
		"internal/balance"} {
		for _, c := range lockedCalls(t, dir) {
			n++
			if what := c.problem(); what != "" {
				t.Errorf("%s:%d: %s", c.at.Filename, c.at.Line, what)
			}
		}
	}
	require.Greater(t, n, 300, "the sources are read")
	require.NotEmpty(t, lockedCall{held: []string{"Session.mu"}, name: "s.codec.Marshal"}.problem())
	require.NotEmpty(t, lockedCall{held: []string{"packet.Pool.mu"}, name: "b.mu.Lock",
		takes: "packet.Budget.mu"}.problem())
}

var usualTypes = map[string]map[string]string{
	"tp": {"s": "Session", "sess": "Session", "cn": "conn", "p": "Peer", "first": "conn",
		"f": "fleet"},
	"places":  {"all": "Places"},
	"workers": {"w": "Pool"},
	"outbox":  {"x": "Box"},
	"socket":  {"w": "writer", "r": "reader"},
}

func heldBy(pkg, receiver string) string {
	name := map[string]string{"conn": "Session.mu", "redialer": "Session.mu", "upstream": "fleet.mu",
		"reader": "reader.setting"}[receiver]
	if name == "" {
		name = receiver + ".mu"
	}
	if pkg != "tp" {
		name = pkg + "." + name
	}
	return name
}
