package handlers

// Failpoints lists the named instructions for the tests outside of the package.
var Failpoints = failpoints

// ReasonOf is what an error becomes in a header.
var ReasonOf = reasonOf
