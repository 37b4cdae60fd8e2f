package blockrepl

import (
	"context"
	"errors"
	"io"
)

var errTODO = errors.New("not yet")

func handleVerify(ctx context.Context, v *Volume, body io.Reader) (any, error) { return nil, errTODO }
