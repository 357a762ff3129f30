// Package tptest is for tests of programs that use package tp: it connects a server and a client in memory,
// makes the connection between them misbehave, and records what was pulled and pushed.
//
//	func TestAdd(t *testing.T) {
//		synctest.Test(t, func(t *testing.T) {
//			rec := new(tptest.Recorder)
//			link := tptest.Pair(t, newServer(rec), tp.NewPeer(nil))
//			sum, err := tp.Call[int](t.Context(), link.Client, "/math/add", [2]int{1, 2})
//			require.NoError(t, err)
//			require.Equal(t, 3, sum)
//			rec.AssertPulled(t, "/math/add", tptest.HasBody([2]int{1, 2}))
//		})
//	}
//
// [Pair] returns the sessions of both sides. They are what they are on a network: hooks have run, TLS is
// spoken if the peers are configured for it. When the test ends the peers are closed, and a handler that does
// not end then fails the test, by the name of its route. Goroutines of other tests, which may run at the same
// time, do not matter.
//
// In a bubble of package testing/synctest the time is the bubble's: a test of a timeout of three minutes
// takes no time. Everything belongs into the bubble, NewPeer too; a recorder may be made anywhere. Without a
// bubble all works in the same way, by the real clock.
//
// # Faults
//
// [Faults] are a delay, a bandwidth, a cut after so many bytes, corrupted bytes, and two kinds of silence.
// They are set for each way, or for both: with the options [ToServer], [ToClient] and [Both] from the first
// byte on, and with the methods of a link while it is in use:
//
//	link.ToClient.CutAfter(100)                      // in the middle of the next reply
//	link.Set(tptest.Faults{Delay: time.Second / 20}) // both ways
//	link.Silence()                                   // nothing arrives any more, and nothing closes
//	link.Heal()
//	link.Cut()                                       // now
//
// # Clients that dial again
//
// The session of a pair ends with its connection. A client with PeerConfig.Redial needs a [Network] to dial,
// and the test decides when a dial succeeds: [Network.HoldDials], [Network.RefuseDials].
//
// # What was pulled and pushed
//
// A [Recorder] is a plugin. It has assertions with matchers, and waits for a push without sleeping:
// [Recorder.AwaitPush].
//
// # In tests only
//
// This package imports testify, which package tp does not. Import it in files whose names end with _test.go,
// so that the program does without.
package tptest
