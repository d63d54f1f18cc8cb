// Package apiclient is a client of the API as oapi-codegen makes it from the
// OpenAPI 3.0 document. It is there to show that code made from the document
// works; tests of package api use it.
//
// contract.sha256 says which document it was made from. The generator is not a
// dependency of this module: go generate fetches it.
package apiclient

//go:generate go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2 -config config.yaml ../../api/testdata/openapi-3.0.json
//go:generate sh -c "sha256sum < ../../api/testdata/openapi-3.0.json > contract.sha256"
