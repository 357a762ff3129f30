package tp

import "context"

// Caller is what calls are made on: a [Session], which is one connection to the other side, or a [Cluster],
// which chooses one of many servers for each call. [Call], [OpenStream] and the methods of [Method] and
// [Note] take either. Other types cannot be Callers.
type Caller interface {
	// Pull sends a request and waits for the reply, see [Session.Pull].
	Pull(uri string, args, reply interface{}, setting ...PacketSetting) *PullCmd
	// PullContext is Pull for as long as ctx lasts.
	PullContext(ctx context.Context, uri string, args, reply interface{}, setting ...PacketSetting) *PullCmd
	// GoPull is Pull without the wait, see [Session.GoPull].
	GoPull(uri string, args, reply interface{}, done chan *PullCmd, setting ...PacketSetting) *PullCmd
	// GoPullContext is GoPull for as long as ctx lasts.
	GoPullContext(ctx context.Context, uri string, args, reply interface{}, done chan *PullCmd,
		setting ...PacketSetting) *PullCmd
	// Push sends args one way, see [Session.Push].
	Push(uri string, args interface{}, setting ...PacketSetting) Xerror
	// PushContext is Push for as long as ctx lasts.
	PushContext(ctx context.Context, uri string, args interface{}, setting ...PacketSetting) Xerror

	openStream(ctx context.Context, uri string, settings []PacketSetting, bytes bool) (*streamCore, Xerror)
}

var (
	_ Caller = (*Session)(nil)
	_ Caller = (*Cluster)(nil)
)

// pullBy is by.PullContext. The compiler knows where each of these calls leads, so that the settings may stay
// on the stack of the program.
func pullBy(ctx context.Context, by Caller, uri string, args, reply interface{},
	settings []PacketSetting) *PullCmd {
	if c, ok := by.(*Cluster); ok {
		return c.PullContext(ctx, uri, args, reply, settings...)
	}
	return by.(*Session).PullContext(ctx, uri, args, reply, settings...)
}

// pushBy is by.PushContext, see pullBy.
func pushBy(ctx context.Context, by Caller, uri string, args interface{}, settings []PacketSetting) Xerror {
	if c, ok := by.(*Cluster); ok {
		return c.PushContext(ctx, uri, args, settings...)
	}
	return by.(*Session).PushContext(ctx, uri, args, settings...)
}
