// Package control is the control socket: what a chainfs command asks the daemon
// that has a tree open, and what it answers.
//
// # Wire
//
// HTTP/1.1 over a unix socket of mode 0600 in a directory of mode 0700. Bodies
// are JSON; the types are in wire.go. A path is relative to the tree's root, a
// string, or {"bytes": base64} where it is not UTF-8.
//
//	GET  /v1/status                 Status
//	POST /v1/tree     PathRequest   []chain.Info: whole chains
//	POST /v1/info     PathRequest   Description
//	POST /v1/why      PathRequest   Verdict
//	POST /v1/plan     RemoveRequest chain.Plan
//	POST /v1/rm       RemoveRequest a stream of Event
//	POST /v1/rebase   RebaseRequest a stream of Event
//	POST /v1/scan                   a stream of Event
//	POST /v1/ops      OperationsRequest Operations
//	POST /v1/ops/cancel OperationRequest {}
//	POST /v1/ops/retry  OperationRequest {}
//	POST /v1/wait     WaitRequest   a stream of Event
//	POST /v1/trash    PathRequest   []chain.Condemned, the newest first
//	POST /v1/trash/empty PathRequest []chain.Condemned that are not kept any longer
//	POST /v1/undelete UndeleteRequest []chain.Path: what is back
//	POST /v1/check                  []chain.Finding
//	POST /v1/check-images CheckImagesRequest a stream of Event; progress counts images
//
// A stream is one Event a line; the last has Result or Error. When nothing was
// streamed yet an error is a Failure with status 400 (bad request), 409
// (refused) or 500.
//
// # Guarantees
//
// When the client goes away its request is cancelled, and what it had begun is
// undone unless it was committed. What was left to the background goes on. One process at a time answers at a socket: it
// holds a lock on the file beside it for as long as it has the tree.
package control
