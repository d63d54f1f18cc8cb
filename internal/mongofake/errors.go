package mongofake

import (
	"fmt"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// MongoDB's error codes, as its manual lists them under "Error Codes".
const (
	codeInternal                 = 1
	codeBadValue                 = 2
	codeGraphContainsCycle       = 5
	codeFailedToParse            = 9
	codeUnauthorized             = 13
	codeTypeMismatch             = 14
	codeInvalidLength            = 16
	codeIllegalOperation         = 20
	codeInvalidBSON              = 22
	codeNamespaceNotFound        = 26
	codeIndexNotFound            = 27
	codePathNotViable            = 28
	codeConflictingUpdates       = 40
	codeCursorNotFound           = 43
	codeNamespaceExists          = 48
	codeDollarPrefixedFieldName  = 52
	codeInvalidIDField           = 53
	codeNotSingleValueField      = 54
	codeEmptyFieldName           = 56
	codeCommandNotFound          = 59
	codeImmutableField           = 66
	codeCannotCreateIndex        = 67
	codeInvalidOptions           = 72
	codeInvalidNamespace         = 73
	codeIndexOptionsConflict     = 85
	codeIndexKeySpecsConflict    = 86
	codeNotAReplicaSet           = 123
	codeDocumentTooLargeOnUpdate = 17419
	codeNotOnView                = 166
	codeInvalidPipelineOperator  = 168
	codeParallelArrays           = 171
	codeQueryPlanKilled          = 175
	codeViewDepthLimit           = 181
	codeInvalidIndexOption       = 197
	codeNotImplemented           = 238
	codeCursorInUse              = 292
	codeDuplicateKey             = 11000
	codeDocumentTooLarge         = 10334
	codeUnknownStage             = 40324
	codeMissingField             = 40414
	codeUnknownField             = 40415
)

var codeNames = map[int32]string{
	codeInternal:                "InternalError",
	codeBadValue:                "BadValue",
	codeGraphContainsCycle:      "GraphContainsCycle",
	codeFailedToParse:           "FailedToParse",
	codeUnauthorized:            "Unauthorized",
	codeTypeMismatch:            "TypeMismatch",
	codeInvalidLength:           "InvalidLength",
	codeIllegalOperation:        "IllegalOperation",
	codeInvalidBSON:             "InvalidBSON",
	codeNamespaceNotFound:       "NamespaceNotFound",
	codeIndexNotFound:           "IndexNotFound",
	codePathNotViable:           "PathNotViable",
	codeConflictingUpdates:      "ConflictingUpdateOperators",
	codeCursorNotFound:          "CursorNotFound",
	codeNamespaceExists:         "NamespaceExists",
	codeDollarPrefixedFieldName: "DollarPrefixedFieldName",
	codeInvalidIDField:          "InvalidIdField",
	codeNotSingleValueField:     "NotSingleValueField",
	codeEmptyFieldName:          "EmptyFieldName",
	codeParallelArrays:          "CannotIndexParallelArrays",
	codeViewDepthLimit:          "ViewDepthLimitExceeded",
	codeInvalidIndexOption:      "InvalidIndexSpecificationOption",
	codeCommandNotFound:         "CommandNotFound",
	codeImmutableField:          "ImmutableField",
	codeCannotCreateIndex:       "CannotCreateIndex",
	codeInvalidOptions:          "InvalidOptions",
	codeInvalidNamespace:        "InvalidNamespace",
	codeIndexOptionsConflict:    "IndexOptionsConflict",
	codeIndexKeySpecsConflict:   "IndexKeySpecsConflict",
	codeNotAReplicaSet:          "NotAReplicaSet",
	codeNotOnView:               "CommandNotSupportedOnView",
	codeInvalidPipelineOperator: "InvalidPipelineOperator",
	codeQueryPlanKilled:         "QueryPlanKilled",
	codeNotImplemented:          "NotImplemented",
	codeCursorInUse:             "CursorInUse",
	codeDuplicateKey:            "DuplicateKey",
	codeDocumentTooLarge:        "BSONObjectTooLarge",

	// Codes that only faults answer.
	6:     "HostUnreachable",
	50:    "MaxTimeMSExpired",
	64:    "WriteConcernTimeout",
	79:    "UnknownReplWriteConcern",
	89:    "NetworkTimeout",
	91:    "ShutdownInProgress",
	112:   "WriteConflict",
	189:   "PrimarySteppedDown",
	262:   "ExceededTimeLimit",
	10107: "NotWritablePrimary",
	11600: "InterruptedAtShutdown",
	11602: "InterruptedDueToReplStateChange",
	13435: "NotPrimaryNoSecondaryOk",
	13436: "NotPrimaryOrSecondary",
}

// serverError is an error as MongoDB reports it, for a whole command or for one
// operation of a bulk write.
type serverError struct {
	code    int32
	message string
	// details are further fields of the error, like keyPattern.
	details bson.D
}

func (e *serverError) Error() string { return e.message }

func fail(code int32, format string, args ...any) *serverError {
	return &serverError{code: code, message: fmt.Sprintf(format, args...)}
}

// unsupported refuses what MongoDB has and this package does not.
func unsupported(format string, args ...any) *serverError {
	return fail(codeNotImplemented, "mongofake doesn't support "+format, args...)
}

func codeName(code int32) string {
	if name, ok := codeNames[code]; ok {
		return name
	}
	return fmt.Sprintf("Location%d", code)
}

// reply is the answer to a command that failed.
func (e *serverError) reply() bson.D {
	d := doc("ok", 0.0, "errmsg", e.message, "code", e.code, "codeName", codeName(e.code))
	return append(d, e.details...)
}

// writeError is the entry in writeErrors for the operation at index.
func (e *serverError) writeError(index int) bson.D {
	d := doc("index", int32(index), "code", e.code)
	d = append(d, e.details...)
	return append(d, bson.E{Key: "errmsg", Value: e.message})
}

// duplicateKey is E11000. Clients must go by the code alone, but the index and
// the key are what people read.
func duplicateKey(ns namespace, index string, pattern, value bson.D) *serverError {
	err := fail(codeDuplicateKey, "E11000 duplicate key error collection: %s index: %s dup key: %s", ns, index, shellText(value))
	err.details = doc("keyPattern", pattern, "keyValue", value)
	return err
}

// doc builds a document from keys and values in turn.
func doc(pairs ...any) bson.D {
	d := make(bson.D, 0, len(pairs)/2)
	for i := 0; i < len(pairs); i += 2 {
		d = append(d, bson.E{Key: pairs[i].(string), Value: pairs[i+1]})
	}
	return d
}
