// Plays one episode: node play.cjs NODE_MODULES URL. Prints what it saw as JSON.
const { createRequire } = require('node:module');
const { randomUUID } = require('node:crypto');

const [, , modules, url] = process.argv;
const sdk = createRequire(`${modules}/`)('@a2a-js/sdk/client');

let token;
const fetchImpl = (input, init = {}) => {
  const headers = new Headers(init.headers);
  if (token) headers.set('Authorization', `Bearer ${token}`);
  return fetch(input, { ...init, headers });
};

const message = (data) => ({
  message: { kind: 'message', messageId: randomUUID(), role: 'user', parts: [{ kind: 'data', data }] },
});

async function main() {
  const transports = [new sdk.JsonRpcTransportFactory({ fetchImpl })];
  const client = await new sdk.ClientFactory({ transports }).createFromUrl(url);
  const send = (data) => client.sendMessage(message(data));
  const ask = async (data) => {
    const task = await send(data);
    if (task.status.state !== 'completed') throw new Error(task.status.message.parts[0].text);
    return task.artifacts[0].parts[0].data.result;
  };

  token = (await ask({ operation: 'join', params: { agent: 'javascript' } })).token;
  const streamed = [];
  const buy = { action: 'buyShares', marketId: 'A', outcome: 'YES', amount: 50 };
  for await (const event of client.sendMessageStream(message(buy))) {
    streamed.push(event.kind === 'artifact-update' ? event.kind : event.status.state);
  }
  await ask({ action: 'advance' });
  const sold = await ask({ operation: 'closePosition', params: { positionId: 'A-yes' } });
  const task = await send({ action: 'get_balance', params: {} });
  const kept = (await client.getTask({ id: task.id })).status.state;
  const refused = (await send({ operation: 'nope' })).status.message.parts[0].text;
  let clock;
  do {
    ({ clock } = await ask({ action: 'advance' }));
  } while (!clock.finished);
  const { size } = JSON.parse(sold.clock.order);
  console.log(JSON.stringify({ streamed, kept, refused, size, result: clock.result }));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
