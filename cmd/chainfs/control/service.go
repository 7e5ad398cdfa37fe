package control

import (
	"context"

	"github.com/chainfs/chainfs/chain"
)

// Service is what can be asked of a tree. A Client asks the daemon; without a
// daemon the command answers itself, from the tree alone.
type Service interface {
	Tree(ctx context.Context, p chain.Path) ([]chain.Info, error)
	Info(ctx context.Context, p chain.Path) (Description, error)
	Why(ctx context.Context, p chain.Path) (Verdict, error)
	Plan(ctx context.Context, req RemoveRequest) (chain.Plan, error)
	Remove(ctx context.Context, req RemoveRequest, report func(chain.Progress)) (Result, error)
	Rebase(ctx context.Context, req RebaseRequest, report func(chain.Progress)) (Result, error)
	Scan(ctx context.Context, report func(chain.Progress)) (chain.Report, error)
	Operations(ctx context.Context, req OperationsRequest) (Operations, error)
	Cancel(ctx context.Context, req OperationRequest) error
	Retry(ctx context.Context, req OperationRequest) error
	Wait(ctx context.Context, req WaitRequest, report func(chain.Progress)) (Result, error)
	EmptyTrash(ctx context.Context, p chain.Path) ([]chain.Condemned, error)
	Trash(ctx context.Context, p chain.Path) ([]chain.Condemned, error)
	Undelete(ctx context.Context, req UndeleteRequest) ([]chain.Path, error)
	Check(ctx context.Context) ([]chain.Finding, error)
	CheckImages(ctx context.Context, req CheckImagesRequest, report func(chain.Progress)) (Result, error)
}
