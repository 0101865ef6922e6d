package handlers

import "github.com/postbus/postbus/internal/reason"

// Failpoints lists the named instructions for the tests outside of the package.
var Failpoints = failpoints

// ReasonOf is what an error becomes in a header.
var ReasonOf = reason.Of
