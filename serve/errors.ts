/** An error that the client is told of, in OpenAI's form. */
export class ApiError extends Error {
  override readonly name = 'ApiError';

  /** @param param the field of the request that it is about. */
  constructor(
    readonly status: number,
    message: string,
    readonly param: string | null = null,
    readonly code: string | null = null,
  ) {
    super(message);
  }
}

/** The body of an error's response. */
export function errorBody({ status, message, param, code }: ApiError): object {
  const types: Record<number, string> = {
    401: 'authentication_error',
    404: 'not_found_error',
    429: 'rate_limit_error',
  };
  const type = types[status] ?? (status < 500 ? 'invalid_request_error' : 'server_error');
  return { error: { message, type, param, code } };
}
